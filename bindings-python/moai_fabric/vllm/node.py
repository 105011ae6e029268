"""One node of the fabric: the engine of this worker's process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from . import library
from .memory import Span
from .settings import Settings

NodeError = library.Problem


@dataclass(frozen=True)
class Ended:
    """A pull has its outcome; its pages are free, or the request's, if it is fenced."""

    transfer: int
    committed: bool
    reason: str
    why: str
    fenced: bool
    bytes_written: int


@dataclass(frozen=True)
class Fenced:
    """Nothing can be written into the pages of a pull any more that had ended without its fence."""

    transfer: int


@dataclass(frozen=True)
class Released:
    """The pages of an offer are free."""

    offer: int
    reason: str


class Node:
    """See the module. All of it raises `NodeError`."""

    def __init__(
        self,
        *,
        engine: str,
        node: int,
        ranks: Sequence[int],
        epoch: int,
        key: bytes,
        produces: bool,
        consumes: bool,
        description: dict[str, Any],
        spans: Sequence[Span],
        settings: Settings,
    ):
        self._digest = settings.digest
        opened = library.call(
            "open",
            engine=engine,
            number=node,
            ranks=list(ranks),
            epoch=epoch,
            key=list(key),
            produces=produces,
            consumes=consumes,
            description=description,
            pools=[[{"address": span.address, "bytes": span.bytes} for span in spans]],
            settings=settings.fabric(),
        )
        self._node: int = opened["node"]
        self.addresses: list[str] = opened["addresses"]
        self._waited: list[dict[str, Any]] = []

    def _pages(self, tokens: int, first: int, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {"tokens": tokens, "first": first, "digest": self._digest, "groups": [list(group) for group in groups]}

    def know(self, engine: str, nodes: Sequence[tuple[int, Sequence[int], Sequence[str]]]) -> None:
        """Says where an engine's nodes are: number, ranks and addresses. Links to them are kept up from now on."""
        library.call("know", node=self._node, engine=engine, nodes=[[number, list(ranks), list(all)] for number, ranks, all in nodes])

    def offer(self, number: int, tokens: int, groups: Sequence[Sequence[int]], lease: float, name: str) -> str:
        """Offers the pages of a request's first tokens for so many seconds; its handle."""
        pages = self._pages(tokens, 0, groups)
        return library.call("offer", node=self._node, number=number, pages=pages, lease=lease, name=name)

    def extend(self, number: int, lease: float) -> None:
        """Keeps an offer for at least so many seconds from now."""
        library.call("extend", node=self._node, number=number, lease=lease)

    def withdraw(self, number: int) -> None:
        """Takes an offer back; `Released` follows."""
        library.call("withdraw", node=self._node, number=number)

    def pull(self, handle: str, tokens: int, first: int, groups: Sequence[Sequence[int]], deadline: float, name: str) -> int:
        """Begins to pull a request's tokens from `first` on; the number of the transfer."""
        pages = self._pages(tokens, first, groups)
        return library.call("pull", node=self._node, handle=handle, pages=pages, deadline=max(deadline, 0.001), name=name)

    def cancel(self, transfer: int) -> None:
        """Ends a transfer; `Ended` follows, if it has not come already."""
        library.call("cancel", node=self._node, transfer=transfer)

    def wait(self, seconds: float) -> None:
        """Waits so long for something to happen, which the next `events` tells."""
        self._waited += library.call("events", node=self._node, wait=seconds)

    def events(self) -> Iterator[Ended | Fenced | Released]:
        """What has happened."""
        happened, self._waited = self._waited + library.call("events", node=self._node, wait=0.0), []
        for event in happened:
            kind = event["event"]
            if kind == "ended":
                problem = event["problem"] or {"reason": "", "why": ""}
                yield Ended(
                    event["transfer"],
                    event["problem"] is None,
                    problem["reason"],
                    problem["why"],
                    event["fenced"],
                    event["report"]["bytes_written"],
                )
            elif kind == "fenced":
                yield Fenced(event["transfer"])
            elif kind == "released":
                yield Released(event["offer"], event["reason"])

    def metrics(self) -> str:
        """The fabric's own metrics, as Prometheus reads them."""
        return library.call("metrics", node=self._node)

    def close(self) -> None:
        """Ends it: nothing is read or written in the pool any more."""
        library.call("close", node=self._node)
