"""Offers, grants and transfers, as an engine gives them."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Optional

from .errors import TransferCancelled, TransferFailed
from .report import Outcome

if TYPE_CHECKING:
    from .engine import Engine
    from .events import Released

__all__ = ["Grant", "Offer", "Transfer"]


class Transfer:
    """A request on its way into this engine's pages, made by :meth:`Engine.pull`, or by a push into a :class:`Grant`.

    It has one outcome, by its deadline. ``await transfer`` waits for it in an event loop, :meth:`wait` in a thread; :attr:`outcome` is
    there after :meth:`Engine.poll`, for programs with a loop of their own.
    """

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine = engine
        self._number = number
        self._outcome: Optional[Outcome] = None
        self._fenced = False
        self._layers: set[int] = set()

    @property
    def number(self) -> int:
        """The engine's number for it, as events have it."""
        return self._number

    @property
    def outcome(self) -> Optional[Outcome]:
        """How it ended; ``None`` as long as it has not, as far as was polled."""
        return self._outcome

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None

    @property
    def fenced(self) -> bool:
        """Whether it has ended and its pages are free (or the request's, if it is committed)."""
        return self._fenced

    @property
    def layers(self) -> frozenset[int]:
        """Global layers that are placed, of a transfer by layer."""
        return frozenset(self._layers)

    def wait(self, timeout: Optional[float] = None) -> Outcome:
        """Waits for the outcome, and returns it if it is committed.

        Raises:
            TransferFailed: It failed; ``outcome`` says why, and which pages are dirty.
            TransferCancelled: It was cancelled.
            TimeoutError: It has not ended for so many seconds. It goes on.
            ClosedError: The engine was closed.
        """
        if not self._engine._pump.wait(lambda: self.done, timeout):
            raise TimeoutError(f"transfer {self._number} has not ended in {timeout} s; it goes on, by its deadline")
        return self._result()

    def wait_fenced(self, timeout: Optional[float] = None) -> Outcome:
        """Waits until it has ended and its pages are free, and returns the outcome, whatever it is."""
        if not self._engine._pump.wait(lambda: self._fenced, timeout):
            raise TimeoutError(f"pages of transfer {self._number} are not free after {timeout} s")
        assert self._outcome is not None
        return self._outcome

    def wait_layer(self, layer: int, timeout: Optional[float] = None) -> None:
        """Waits until all of a global layer is placed, with equal digests. It must have been begun ``by_layer``; otherwise this waits for
        the whole. Raises as :meth:`wait`."""
        if not self._engine._pump.wait(lambda: layer in self._layers or self.done, timeout):
            raise TimeoutError(f"layer {layer} of transfer {self._number} is not there after {timeout} s")
        if layer not in self._layers:
            self._result()

    async def wait_async(self, timeout: Optional[float] = None) -> Outcome:
        """As :meth:`wait`, in an event loop; ``await transfer`` is the same without a timeout.

        A task that is cancelled while it waits leaves the transfer alone: :meth:`cancel` ends it.
        """
        if not await self._engine._pump.wait_async(lambda: self.done, timeout):
            raise TimeoutError(f"transfer {self._number} has not ended in {timeout} s; it goes on, by its deadline")
        return self._result()

    async def wait_layer_async(self, layer: int, timeout: Optional[float] = None) -> None:
        """As :meth:`wait_layer`, in an event loop."""
        if not await self._engine._pump.wait_async(lambda: layer in self._layers or self.done, timeout):
            raise TimeoutError(f"layer {layer} of transfer {self._number} is not there after {timeout} s")
        if layer not in self._layers:
            self._result()

    def __await__(self) -> Generator[Any, None, Outcome]:
        return self.wait_async().__await__()

    def cancel(self) -> None:
        """Ends it. Its outcome follows, which may be committed if it was faster; one that has ended stays as it is."""
        if not self.done:
            self._engine.cancel(self._number)

    def __repr__(self) -> str:
        return f"<Transfer {self._number}, {self._outcome.result if self._outcome else 'under way'}>"

    def _result(self) -> Outcome:
        outcome = self._outcome
        assert outcome is not None
        if outcome.committed:
            return outcome
        kind = TransferCancelled if outcome.result == "cancelled" else TransferFailed
        error = kind(f"transfer {self._number} {outcome.result}: {outcome.message}", field="transfer", theirs=outcome.reason)
        error.outcome = outcome
        raise error


class Offer:
    """Pages that are kept for whoever has the handle, made by :meth:`Engine.offer`."""

    def __init__(self, engine: Engine, number: int, handle: str) -> None:
        self._engine = engine
        self._number = number
        self._handle = handle
        self._released: Optional[Released] = None
        self._quarantined: Optional[str] = None

    @property
    def number(self) -> int:
        """Its number, as events have it."""
        return self._number

    @property
    def handle(self) -> str:
        """Text that goes with the request, through whatever router there is."""
        return self._handle

    @property
    def released(self) -> Optional[Released]:
        """Why its pages are free, and how it went; ``None`` as long as they are not, as far as was polled."""
        return self._released

    @property
    def quarantined(self) -> Optional[str]:
        """Why it has ended although its pages may still be read; ``None`` if that is not so."""
        return None if self._released is not None else self._quarantined

    def layer_ready(self, layer: Optional[int], tokens: int) -> None:
        """The first ``tokens`` tokens of a global layer, or of all (``None``), are written."""
        self._engine.layer_ready(self._number, layer, tokens)

    def extend(self, lease: float) -> None:
        """Keeps the pages for at least so many seconds from now. One that has ended stays so."""
        self._engine.extend(self._number, lease)

    def withdraw(self) -> None:
        """Takes it back; :meth:`wait_released` says when its pages are free."""
        self._engine.withdraw(self._number)

    def push(self, grant: str) -> None:
        """Asks the engine that made a grant to pull this into it."""
        self._engine.push(self._number, grant)

    def wait_released(self, timeout: Optional[float] = None) -> Released:
        """Waits until its pages are free."""
        if not self._engine._pump.wait(lambda: self._released is not None, timeout):
            raise TimeoutError(f"pages of offer {self._number} are not free after {timeout} s")
        assert self._released is not None
        return self._released

    async def wait_released_async(self, timeout: Optional[float] = None) -> Released:
        """The same in an event loop."""
        if not await self._engine._pump.wait_async(lambda: self._released is not None, timeout):
            raise TimeoutError(f"pages of offer {self._number} are not free after {timeout} s")
        assert self._released is not None
        return self._released

    def __repr__(self) -> str:
        return f"<Offer {self._number}, {self._released.reason if self._released else 'kept'}>"

    def _quarantine(self, reason: str) -> None:
        self._quarantined = reason


class Grant:
    """Pages that a push may fill, made by :meth:`Engine.grant`."""

    def __init__(self, engine: Engine, number: int, handle: str) -> None:
        self._engine = engine
        self._number = number
        self._handle = handle
        self._transfer: Optional[Transfer] = None
        self._returned: Optional[str] = None

    @property
    def number(self) -> int:
        """Its number, as events have it."""
        return self._number

    @property
    def handle(self) -> str:
        """Text for the producer."""
        return self._handle

    @property
    def transfer(self) -> Optional[Transfer]:
        """The transfer that fills it; ``None`` as long as no producer has begun, as far as was polled."""
        return self._transfer

    @property
    def returned(self) -> Optional[str]:
        """Why its pages are free without a transfer; ``None`` if they are not."""
        return self._returned

    def revoke(self) -> None:
        """Takes it back, if no transfer has begun."""
        self._engine.revoke(self._number)

    def wait_invited(self, timeout: Optional[float] = None) -> Transfer:
        """Waits until a producer has begun to fill it, and returns the transfer.

        Raises:
            TransferFailed: Its lease ran out, or it was revoked.
            TimeoutError: Nobody has begun for so many seconds.
        """
        if not self._engine._pump.wait(lambda: self._transfer is not None or self._returned is not None, timeout):
            raise TimeoutError(f"nobody has begun to fill grant {self._number} in {timeout} s")
        return self._result()

    async def wait_invited_async(self, timeout: Optional[float] = None) -> Transfer:
        """The same in an event loop."""
        if not await self._engine._pump.wait_async(lambda: self._transfer is not None or self._returned is not None, timeout):
            raise TimeoutError(f"nobody has begun to fill grant {self._number} in {timeout} s")
        return self._result()

    def __repr__(self) -> str:
        state = f"filled by transfer {self._transfer.number}" if self._transfer else self._returned or "kept"
        return f"<Grant {self._number}, {state}>"

    def _result(self) -> Transfer:
        if self._transfer is None:
            raise TransferFailed(f"grant {self._number} was returned: {self._returned}", field="grant", theirs=self._returned)
        return self._transfer
