"""Objects of the C library, freed when nothing in Python has them any more."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from .errors import ClosedError, ForkError

__all__ = ["Object", "check_process"]


def _free(free: Callable[[int], Any], pointer: int, process: int) -> None:
    # In the child of a fork the object is the parent's.
    if os.getpid() == process:
        free(pointer)


class Object:
    """An object of the library, freed once: by :meth:`free`, with this, or when the interpreter exits."""

    __slots__ = ("__weakref__", "_finalizer", "_pointer")

    def __init__(self, pointer: int, free: Callable[[int], Any]) -> None:
        self._pointer = pointer
        self._finalizer = weakref.finalize(self, _free, free, pointer, os.getpid())

    @property
    def pointer(self) -> int:
        if not self._finalizer.alive:
            raise ClosedError("it was closed before; make a new one")
        return self._pointer

    @property
    def alive(self) -> bool:
        return self._finalizer.alive

    def free(self) -> None:
        """Frees it now, if it was not yet."""
        self._finalizer()


def check_process(process: int, what: str) -> None:
    """Raises :class:`ForkError` if this is not the process that made something."""
    here = os.getpid()
    if here != process:
        raise ForkError(
            f"{what} was made in process {process} and is used in its child {here}, which has none of its threads: "
            "start processes with the multiprocessing method 'spawn' or 'forkserver', and make it there",
            field="pid",
            ours=str(here),
            theirs=str(process),
            hint="multiprocessing.get_context('spawn')",
        )
