"""One node of the fabric: the engine of this worker's process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import Config, Engine, Error, HandleError, Memory, Request, events
from .. import Node as Peer
from .memory import Span
from .settings import Settings


class NodeError(Exception):
    """Something was not done: `reason` is one word, and the text is for people."""

    def __init__(self, reason: str, why: str):
        super().__init__(why)
        self.reason = reason


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
    """See the module. What cannot be is a `NodeError`."""

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
        groups: Sequence[bool],
        spans: Sequence[Span],
        settings: Settings,
    ):
        config = Config.from_env()
        for name, value in settings.fabric().items():
            config[name] = value
        self._digest = settings.digest or "wire"
        # By name; those of which this node has no layer have no pages here.
        self._groups = [(group["name"], held) for group, held in zip(description.get("groups", []), groups)]
        self._engine = Engine(
            engine,
            description,
            [Memory.from_pointer(span.address, span.bytes) for span in spans],
            config,
            node=node,
            ranks=ranks,
            produces=produces,
            consumes=consumes,
            epoch=epoch,
            key=key,
        )
        self.addresses = list(self._engine.addresses)
        self._waited: list[events.Event] = []

    def _request(self, tokens: int, held: int, groups: Sequence[Sequence[int]]) -> Request:
        lists = [list(pages) for pages in groups]
        named = {name: pages for (name, here), pages in zip(self._groups, lists) if here}
        return Request(tokens, named if self._groups else lists[0], held=held, digest=self._digest)

    def know(self, engine: str, nodes: Sequence[tuple[int, Sequence[int], Sequence[str]]]) -> None:
        """Says where an engine's nodes are: number, ranks and addresses. Links to them are kept up from now on."""
        with _told():
            self._engine.know(engine, [Peer(number, tuple(ranks), tuple(addresses)) for number, ranks, addresses in nodes])

    def offer(self, number: int, tokens: int, groups: Sequence[Sequence[int]], lease: float, name: str) -> str:
        """Offers the pages of a request's first tokens for so many seconds; its handle."""
        with _told():
            return self._engine.offer(self._request(tokens, 0, groups), lease=lease, number=number, name=name).handle

    def extend(self, number: int, lease: float) -> None:
        """Keeps an offer for at least so many seconds from now."""
        with _told():
            self._engine.extend(number, lease)

    def withdraw(self, number: int) -> None:
        """Takes an offer back; `Released` follows."""
        with _told():
            self._engine.withdraw(number)

    def pull(self, handle: str, tokens: int, first: int, groups: Sequence[Sequence[int]], deadline: float, name: str) -> int:
        """Begins to pull a request's tokens from `first` on; the number of the transfer."""
        with _told():
            request = self._request(tokens, first, groups)
            return self._engine.pull(handle, request, deadline=max(deadline, 0.001), name=name).number

    def cancel(self, transfer: int) -> None:
        """Ends a transfer; `Ended` follows, if it has not come already."""
        with _told():
            self._engine.cancel(transfer)

    def wait(self, seconds: float) -> None:
        """Waits so long for something to happen, which the next `events` tells."""
        event = self._engine.next_event(seconds)
        if event is not None:
            self._waited.append(event)

    def events(self) -> Iterator[Ended | Fenced | Released]:
        """What has happened."""
        happened, self._waited = self._waited + self._engine.events(), []
        for event in happened:
            if isinstance(event, events.Ended):
                outcome = event.outcome
                reason = outcome.reason or outcome.result
                written = int(outcome.report.get("bytes_written", 0))
                yield Ended(event.transfer, outcome.committed, reason, outcome.message, outcome.fenced, written)
            elif isinstance(event, events.Fenced):
                yield Fenced(event.transfer)
            elif isinstance(event, events.Released):
                yield Released(event.offer, event.reason)

    def metrics(self) -> str:
        """The fabric's own metrics, as Prometheus reads them."""
        return self._engine.metrics()

    def close(self) -> None:
        """Ends it: nothing is read or written in the pool any more."""
        self._engine.close()


class _told:
    """Errors of the package as `NodeError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Error):
            reason = error.theirs if isinstance(error, HandleError) and error.theirs else "local"
            raise NodeError(reason, str(error)) from error
