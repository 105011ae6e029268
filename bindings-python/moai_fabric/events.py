"""What happens at an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from .report import Outcome

__all__ = [
    "Declined",
    "Ended",
    "Event",
    "Fenced",
    "Invited",
    "LayerPlaced",
    "PeerLost",
    "PeerUp",
    "Quarantined",
    "Released",
    "Returned",
    "Served",
    "Superseded",
    "Unknown",
]


@dataclass(frozen=True)
class Event:
    """Something that happened; each kind is a class of its own."""


@dataclass(frozen=True)
class PeerUp(Event):
    """A node of another engine can be talked to."""

    engine: str
    node: int
    epoch: int
    """Its life."""


@dataclass(frozen=True)
class PeerLost(Event):
    """It cannot any more."""

    engine: str
    node: int
    why: str


@dataclass(frozen=True)
class Superseded(Event):
    """A later life of this engine is known to a peer: this one should end."""

    engine: str
    """Who said so."""


@dataclass(frozen=True)
class LayerPlaced(Event):
    """Consumer: all of a layer is placed, with equal digests. The transfer may still fail."""

    transfer: int
    layer: int
    """Global layer."""


@dataclass(frozen=True)
class Ended(Event):
    """Consumer: how a transfer ended. Once."""

    transfer: int
    outcome: Outcome


@dataclass(frozen=True)
class Fenced(Event):
    """Consumer: pages of a transfer that had ended without its fence are free."""

    transfer: int


@dataclass(frozen=True)
class Invited(Event):
    """Consumer: a producer has begun to fill a grant."""

    grant: int
    transfer: int
    handle: str
    """The producer's offer."""


@dataclass(frozen=True)
class Returned(Event):
    """Consumer: the pages of a grant that no transfer took are free."""

    grant: int
    reason: str


@dataclass(frozen=True)
class Released(Event):
    """Producer: the pages of an offer are free."""

    offer: int
    reason: str
    """``consumed`` if all of it was pulled, ``expired``, ``withdrawn``, …"""
    outcome: Outcome
    """How it went, over all that was served from it."""


@dataclass(frozen=True)
class Quarantined(Event):
    """Producer: an offer has ended, and its pages may still be read: ``Released`` follows."""

    offer: int
    reason: str


@dataclass(frozen=True)
class Served(Event):
    """Producer: a part of an offer was served."""

    offer: int
    engine: str
    """The consumer."""
    rank: int
    """Rank of this node."""
    peer_rank: int
    """Rank of the consumer."""
    reason: Optional[str]
    """Why it failed; ``None`` if it did not."""
    why: Optional[str]
    """The same in a sentence."""


@dataclass(frozen=True)
class Declined(Event):
    """Producer: a push was not taken."""

    offer: int
    engine: str
    """The consumer."""
    reason: str
    why: str
    """The same in a sentence."""


@dataclass(frozen=True)
class Unknown(Event):
    """An event of a later library, which this package has no class for."""

    kind: int
