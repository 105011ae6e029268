"""What the scheduler's half and the workers' halves of the connector say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from .paging import Group
from .params import Remote


@dataclass
class MoaiHandshake(KVConnectorHandshakeMetadata):
    """What a worker tells its scheduler once: who the engine is, and where this worker listens."""

    engine: str
    epoch: int
    key: bytes = field(repr=False)
    node: int = 0
    ranks: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class OfferOrder:
    """The pages of a request's first tokens, by group, are to be offered once this step's are written."""

    number: int
    request: str
    tokens: int
    pages: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PullOrder:
    """A request's tokens from `first` on are to be pulled into its pages; or it has failed already, with a problem."""

    request: str
    remote: Remote | None
    tokens: int
    first: int
    pages: tuple[tuple[int, ...], ...]
    problem: str | None = None


@dataclass
class MoaiMetadata(KVConnectorMetadata):
    """The orders of a step."""

    offers: list[OfferOrder] = field(default_factory=list)
    pulls: list[PullOrder] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    extends: list[int] = field(default_factory=list)
    withdraws: list[int] = field(default_factory=list)
    # Nothing is computed in this step.
    idle: bool = False


@dataclass
class MoaiWorkerMetadata(KVConnectorWorkerMetadata):
    """How many workers have let go of the pages of each offer."""

    released: dict[int, int] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        for number, count in other.released.items():
            self.released[number] = self.released.get(number, 0) + count
        return self
