"""Events of the library, as those of the package."""

from __future__ import annotations

import json
from ctypes import byref, c_char_p, c_void_p
from typing import Any, Optional

from . import events
from ._native import ABSENT, OK, OVER as OVER_STATUS, TIMEOUT, Dirty, EventFields, call, failure, lib
from .report import DirtyPages, Outcome

__all__ = ["OVER", "next_of"]

OVER = events.Event()
"""The engine is over: no event follows."""

_OUTCOMES = {1: "committed", 2: "failed", 3: "cancelled"}

REASONS = (
    "other",
    "version",
    "not_allowed",
    "stale_epoch",
    "duplicate",
    "disagree",
    "misdirected",
    "busy",
    "unknown_offer",
    "consumed",
    "restarted",
    "expired",
    "forged",
    "elsewhere",
    "reused",
    "withdrawn",
    "not_owed",
    "deadline",
    "cancelled",
    "other_part",
    "local",
    "protocol",
    "digest",
    "lost",
)
"""Words for the numbers that engines tell each other, as the header's ``MOAI_REASON_``."""


def next_of(engine: int) -> Optional[events.Event]:
    """The next event of an engine, if there is one now; :data:`OVER` if none will be."""
    pointer = c_void_p()
    status = lib.moai_engine_poll(engine, 0, byref(pointer))
    if status == TIMEOUT:
        return None
    if status == OVER_STATUS:
        return OVER
    if status != OK:
        raise failure(status)
    try:
        return _read(pointer.value or 0)
    finally:
        lib.moai_event_free(pointer)


def _read(event: int) -> events.Event:
    fields = EventFields()
    call(lib.moai_event_read, event, byref(fields))
    kind = fields.kind
    engine = _text(lib.moai_event_engine, event)
    why = _text(lib.moai_event_message, event)
    reason = REASONS[fields.reason] if fields.reason < len(REASONS) else "other"
    if kind == 1:
        return events.PeerUp(engine, fields.node, fields.epoch)
    if kind == 2:
        return events.PeerLost(engine, fields.node, why)
    if kind == 3:
        return events.Superseded(engine)
    if kind == 4:
        return events.LayerPlaced(fields.transfer, fields.layer)
    if kind == 5:
        return events.Ended(fields.transfer, _outcome(event, fields, reason, why))
    if kind == 6:
        return events.Fenced(fields.transfer)
    if kind == 7:
        return events.Invited(fields.number, fields.transfer, _text(lib.moai_event_handle, event))
    if kind == 8:
        return events.Returned(fields.number, reason)
    if kind == 9:
        return events.Released(fields.number, reason, _outcome(event, fields, reason, why))
    if kind == 10:
        return events.Quarantined(fields.number, reason)
    if kind == 11:
        failed = fields.outcome != 1
        served = fields.number, engine, fields.rank, fields.peer_rank
        return events.Served(*served, reason if failed else None, why if failed else None)
    if kind == 12:
        return events.Declined(fields.number, engine, reason, why)
    return events.Unknown(kind)


def _outcome(event: int, fields: EventFields, reason: str, why: str) -> Outcome:
    report: dict[str, Any] = json.loads(_text(lib.moai_event_report, event) or "{}")
    result = _OUTCOMES.get(fields.outcome, "failed")
    committed = result == "committed"
    return Outcome(
        result=result,
        reason=None if committed else reason,
        message="" if committed else why or f"its end is told as {reason}",
        fenced=bool(fields.fenced),
        dirty=tuple(_dirty(event, i) for i in range(fields.dirty_count)),
        report=report,
    )


def _dirty(event: int, index: int) -> DirtyPages:
    dirty = Dirty()
    call(lib.moai_event_dirty, event, index, byref(dirty))
    return DirtyPages(dirty.rank, (dirty.group or b"").decode(), tuple(dirty.pages[: dirty.page_count]))


def _text(function: Any, event: int) -> str:
    text = c_char_p()
    status = function(event, byref(text))
    if status == ABSENT:
        return ""
    if status != OK:
        raise failure(status)
    return (text.value or b"").decode("utf-8", "replace")
