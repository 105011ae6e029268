"""What happens at an engine, told to whoever waits.

The library tells events to one thread at a time. Here any number of threads and event loops wait for different things: one of them
takes the events for all, and hands that over when it has what it waited for. Nothing runs while nobody waits or polls.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Optional

from ._object import check_process
from .errors import ArgumentError, ClosedError

__all__ = ["Pump"]


class Pump:
    """Takes events from ``drain`` when ``fd`` is readable, for all who wait.

    Args:
        fd: Readable while there is something to drain.
        drain: Takes all that is there, without waiting. Called by one thread at a time, with :attr:`lock` held.
        what: What to call the engine in messages.
    """

    def __init__(self, fd: int, drain: Callable[[], int], what: str) -> None:
        self.lock = threading.RLock()
        """Held while state changes that waits look at."""
        self.closed = False
        self._changed = threading.Condition(self.lock)
        # Our own descriptor of it: it stays valid for event loops, whatever becomes of the engine.
        self._fd = os.dup(fd)
        self._drain = drain
        self._what = what
        self._process = os.getpid()
        self._waiting = False  # one thread is in poll(2)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open = True
        self._tasks: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}

    def check(self) -> None:
        """Raises if nothing can be waited for any more, or in this process."""
        check_process(self._process, self._what)
        if self.closed:
            raise ClosedError(f"{self._what} was closed before; start another one")

    def poll(self) -> int:
        """Takes what has happened, without waiting; returns how many events that were."""
        self.check()
        with self.lock:
            if self.closed:
                return 0
            count = self._drain()
            if count:
                self._tell()
            return count

    def wait(self, done: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Waits until ``done``, which is called with the lock held, or for so many seconds; returns whether it is.

        Raises:
            ClosedError: The engine was closed before it was done.
        """
        end = None if timeout is None else time.monotonic() + limit(timeout)
        self.check()
        while True:
            mine = False
            try:
                with self.lock:
                    self.poll_if_open()
                    while True:
                        if done():
                            return True
                        self.check()
                        left = None if end is None else end - time.monotonic()
                        if left is not None and left <= 0:
                            return False
                        if not self._waiting:
                            break
                        self._changed.wait(left)
                    # Noted first, so that a signal's handler that raises in between leaves nobody waiting for us.
                    mine = True
                    self._waiting = True
                self._sleep(left)
            finally:
                if mine:
                    with self.lock:
                        self._waiting = False
                        self._calm()
                        # Whoever else waits takes over, if this one has what it waited for.
                        self._changed.notify_all()
                        self._release()

    def poll_if_open(self) -> None:
        """As :meth:`poll`, and nothing if it is closed."""
        if not self.closed:
            self.poll()

    async def wait_async(self, done: Callable[[], bool], timeout: Optional[float]) -> bool:
        """As :meth:`wait`, in an event loop: others of its tasks run meanwhile."""
        self.check()
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            try:
                loop.call_soon_threadsafe(lambda: None if ready.done() else ready.set_result(None))
            except RuntimeError:
                pass  # the loop was closed: its tasks are gone

        task = (lambda: self.closed or done()), tell
        with self.lock:
            self._attach(loop)
            self._tasks.append(task)
        try:
            with self.lock:
                self.poll_if_open()
                if done():
                    return True
                self.check()
            try:
                await asyncio.wait_for(ready, None if timeout is None else limit(timeout))
            except (asyncio.TimeoutError, TimeoutError):
                pass
            with self.lock:
                if done():
                    return True
                self.check()
                return False
        finally:
            with self.lock:
                if task in self._tasks:
                    self._tasks.remove(task)
                self._detach(loop)

    def close(self) -> None:
        """Ends it: whoever waits is told, and nothing can be waited for any more."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._tell()
            self._release()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self._release(last=True)

    def _release(self, last: bool = False) -> None:
        """Closes the descriptors, once nobody polls them any more."""
        if self._open and (last or (self.closed and not self._waiting and not self._loops)):
            self._open = False
            for fd in self._fd, self._wake_read, self._wake_write:
                os.close(fd)

    def _sleep(self, seconds: Optional[float]) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        # Rounded up, so that the last millisecond is not spent spinning.
        poll.poll(None if seconds is None else int(seconds * 1000) + 1)

    def _calm(self) -> None:
        """Takes back what woke the thread in poll(2)."""
        try:
            while self._open and os.read(self._wake_read, 64):
                pass
        except BlockingIOError:
            pass

    def _tell(self) -> None:
        """Has everybody look at what changed."""
        self._changed.notify_all()
        if self._waiting and self._open:
            # It is in poll(2), or about to be: what was taken by this thread makes its descriptor readable no more.
            os.write(self._wake_write, b"x")
        for task in [task for task in self._tasks if task[0]()]:
            self._tasks.remove(task)
            task[1]()

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._loops:
            loop.add_reader(self._fd, self.poll_if_open)
        self._loops[loop] = self._loops.get(loop, 0) + 1

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loops[loop] -= 1
        if self._loops[loop] == 0:
            del self._loops[loop]
            loop.remove_reader(self._fd)
            self._release()


def limit(timeout: object) -> float:
    """How long to wait, in seconds."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ArgumentError(f"timeout: {timeout!r} is no span of time; expected seconds, or None", field="timeout", ours=repr(timeout))
    return min(float(timeout), MOST_WAIT)


MOST_WAIT = 1e6
"""Eleven days: what poll(2) takes, with room."""
