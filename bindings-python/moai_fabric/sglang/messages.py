"""What prefill and decode ranks say to each other over SGLang's control sockets, beside SGLang's own `ABORT`.

A frame is text in ASCII, unless said otherwise. What cannot be read is dropped with a warning: a peer's bytes never raise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(f"sglang.{__name__}")

VERSION = b"1"
HELLO, WANT, OFFER, DONE, STATUS = b"MOAI_HELLO", b"MOAI_WANT", b"MOAI_OFFER", b"MOAI_DONE", b"MOAI_STATUS"

# Longer than any handle or reason, shorter than anything that hurts.
MAX_TEXT = 4096
# More ranks than a server has.
MAX_RANKS = 4096


@dataclass(frozen=True)
class Want:
    """A decode rank has pages for a request, and waits for its offer."""

    room: int
    endpoint: str
    dst_port: int
    # Decode ranks that send this to the same prefill rank.
    required: int
    # SGLang's own: every rank that asks is one that pulls.
    is_dummy: bool = False

    def frames(self) -> list[bytes]:
        return [WANT, VERSION, *map(_text, (self.room, self.endpoint, self.dst_port, self.required))]


@dataclass(frozen=True)
class Offer:
    """A prefill rank offers the request's pages."""

    room: int
    rank: int
    engine: str
    epoch: int
    handle: str
    tokens: int
    # A row of each of SGLang's metadata buffers: bytes.
    aux: tuple[bytes, ...]

    def frames(self) -> list[bytes]:
        head = map(_text, (self.room, self.rank, self.engine, self.epoch, self.handle, self.tokens))
        return [OFFER, VERSION, *head, *self.aux]


@dataclass(frozen=True)
class Done:
    """A decode rank's pull has ended, and its pages are its own again."""

    room: int
    # Empty if it was committed.
    problem: str
    endpoint: str
    dst_port: int

    def frames(self) -> list[bytes]:
        return [DONE, VERSION, _text(self.room), self.problem.encode()[:MAX_TEXT], *map(_text, (self.endpoint, self.dst_port))]


def read(frames: list[bytes]) -> Want | Offer | Done | None:
    """The message in these frames, or None."""
    try:
        tag, version, *rest = frames
        if version != VERSION:
            logger.warning("moai: a %s of version %r is dropped; this build speaks %r", tag[:20], version[:20], VERSION)
            return None
        if tag == WANT:
            room, endpoint, port, required = rest
            return Want(_number(room), _read(endpoint), _number(port, 65535), _number(required, MAX_RANKS))
        if tag == OFFER:
            room, rank, engine, epoch, handle, tokens, *aux = rest
            numbers = _number(room), _number(rank, MAX_RANKS)
            return Offer(*numbers, _read(engine), _number(epoch), _read(handle), _number(tokens), tuple(aux))
        if tag == DONE:
            room, problem, endpoint, port = rest
            return Done(_number(room), problem[:MAX_TEXT].decode(errors="replace"), _read(endpoint), _number(port, 65535))
    except ValueError as error:
        logger.warning("moai: a message that cannot be read is dropped: %s", error)
    return None


def _text(value: object) -> bytes:
    return str(value).encode("ascii")


def _read(frame: bytes) -> str:
    if len(frame) > MAX_TEXT:
        raise ValueError(f"a text of {len(frame)} bytes; at most {MAX_TEXT}")
    return frame.decode("ascii")


def _number(frame: bytes, most: int = (1 << 64) - 1) -> int:
    if not frame.isdigit() or len(frame) > 20 or int(frame) > most:
        raise ValueError(f"{frame[:30]!r} is no number up to {most}")
    return int(frame)
