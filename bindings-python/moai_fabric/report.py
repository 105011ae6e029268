"""How transfers went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional

__all__ = ["DirtyPages", "Outcome"]


@dataclass(frozen=True)
class DirtyPages:
    """Pages of one rank and group that may hold part of what was to come."""

    rank: int
    group: str
    """Name of the group of layers; empty without groups."""
    pages: tuple[int, ...]
    """Page numbers, ascending."""


@dataclass(frozen=True)
class Outcome:
    """The one outcome of a transfer, or of all that was served from an offer."""

    result: str
    """``committed``, ``failed`` or ``cancelled``."""
    fenced: bool
    """Whether the pages are free now (or the request's); if not, they are quarantined until ``Fenced``."""
    dirty: tuple[DirtyPages, ...]
    """Pages that may hold part of what was to come; all others are untouched. Empty if committed."""
    reason: Optional[str]
    """Why not committed, as a word: ``deadline``, ``lost``, ``restarted``, ``digest``, ``cancelled``, …; ``None`` if committed."""
    message: str
    """The same in a sentence; empty if committed."""
    report: Mapping[str, Any]
    """Bytes, chunks, times in nanoseconds and routes, as in the book's table; JSON can be made of it."""

    @property
    def committed(self) -> bool:
        """Whether all is there: complete, placed, with equal digests."""
        return self.result == "committed"
