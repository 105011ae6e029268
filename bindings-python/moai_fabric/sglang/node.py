"""A rank's node of the fabric, as this backend uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from moai_fabric import Config, Engine, Error, Memory, Request, events
from moai_fabric import Node as Process

from .pool import Span

NodeError = Error


@dataclass(frozen=True)
class Ended:
    """A pull is over. Its pages are this side's again if it is fenced, otherwise once `Fenced` says so."""

    transfer: int
    is_committed: bool
    reason: str
    why: str
    is_fenced: bool


@dataclass(frozen=True)
class Fenced:
    """The pages of a pull that had ended are this side's again."""

    transfer: int


@dataclass(frozen=True)
class Released:
    """The pages of an offer are free."""

    offer: int
    is_consumed: bool
    why: str


class Node:
    """See the module. Calls may come from any thread."""

    def __init__(
        self,
        *,
        engine: str,
        node: int,
        epoch: int,
        key: bytes,
        produces: bool,
        consumes: bool,
        description: dict[str, Any],
        spans: Sequence[Span],
    ):
        self._engine = Engine(
            engine,
            description,
            [Memory.from_pointer(span.address, span.bytes) for span in spans],
            Config.from_env(),
            node=node,
            ranks=[node],
            epoch=epoch,
            key=key,
            produces=produces,
            consumes=consumes,
        )

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        return list(self._engine.addresses)

    def fileno(self) -> int:
        """Readable while there are events."""
        return self._engine.fileno()

    def events(self) -> Iterator[Ended | Fenced | Released]:
        """What has happened, without waiting for more."""
        for event in self._engine.events():
            if isinstance(event, events.Ended):
                outcome = event.outcome
                yield Ended(event.transfer, outcome.committed, outcome.reason or "", outcome.message, outcome.fenced)
            elif isinstance(event, events.Fenced):
                yield Fenced(event.transfer)
            elif isinstance(event, events.Released):
                yield Released(event.offer, event.reason == "consumed", event.reason)

    def know(self, engine: str, nodes: Sequence[tuple[int, Sequence[int], Sequence[str]]]) -> None:
        """Says where an engine's nodes are: numbers, ranks, addresses."""
        self._engine.know(engine, [Process(number, tuple(ranks), tuple(addresses)) for number, ranks, addresses in nodes])

    def offer(self, number: int, tokens: int, pages: Sequence[int], lease: float, name: str) -> str:
        """Offers a request's pages: the handle's text."""
        return self._engine.offer(Request(tokens, pages), lease=lease, number=number, name=name).handle

    def withdraw(self, number: int) -> None:
        """Takes an offer back; `Released` follows if it has not come already."""
        self._engine.withdraw(number)

    def pull(self, handle: str, tokens: int, pages: Sequence[int], deadline: float, name: str) -> int:
        """Begins to move a request into pages; `Ended` follows by the deadline."""
        return self._engine.pull(handle, Request(tokens, pages), deadline=deadline, name=name).number

    def cancel(self, transfer: int) -> None:
        """Ends a pull; `Ended` follows if it has not come already."""
        self._engine.cancel(transfer)
