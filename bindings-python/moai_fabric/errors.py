"""What can go wrong, as exceptions with fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .report import Outcome

__all__ = [
    "ArgumentError",
    "ClosedError",
    "ConfigError",
    "DescriptorError",
    "Error",
    "ForkError",
    "HandleError",
    "InUseError",
    "InternalError",
    "MemoryRegistrationError",
    "Obstacle",
    "PlatformError",
    "RefusedError",
    "RequestError",
    "ThreadError",
    "TransferCancelled",
    "TransferFailed",
    "UnsupportedError",
]


class Error(Exception):
    """Whatever the fabric refuses or fails at; the base of all its exceptions.

    Attributes:
        status: The C library's number for it, from ``moai_fabric.h``; 0 if this package found it.
        status_name: The same as its name there, as ``MOAI_VALUE``.
        message: What is wrong, in a sentence, with the values.
        field: Which argument, setting or field it is about, as ``components.key.dim``; ``None`` if about none.
        ours: What was given, or what this side says; ``None`` if there is no such value.
        theirs: What was expected, or what the other side says; ``None`` likewise.
        hint: What would resolve it; ``None`` if nothing is known to.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        status_name: str = "",
        field: Optional[str] = None,
        ours: Optional[str] = None,
        theirs: Optional[str] = None,
        hint: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.status_name = status_name
        self.field = field
        self.ours = ours
        self.theirs = theirs
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ArgumentError(Error, ValueError):
    """An argument is of the wrong type or out of range. ``field`` names it."""


class ConfigError(Error, ValueError):
    """A setting is not known, or its value cannot be. ``field`` is the setting."""


class DescriptorError(Error, ValueError):
    """A description of a cache cannot be. ``field`` is the place in it."""


class RequestError(Error, ValueError):
    """Tokens, layers or pages of a request do not fit its side. ``field`` is the place in it."""


class MemoryRegistrationError(Error, ValueError):
    """Memory cannot be registered: read-only, not contiguous, empty, or of a kind that cannot be reached."""


class HandleError(Error, ValueError):
    """A transfer cannot begin: its handle is none or of nobody who is known, or the request does not fit. The message says which."""


class InUseError(Error):
    """Memory cannot be given back while an engine has it."""


class PlatformError(Error):
    """The operating system refused something."""


class InternalError(Error):
    """A bug in the library, with what it said."""


class ClosedError(Error):
    """The engine or the memory was closed before."""


class UnsupportedError(Error):
    """This release cannot do it, as memory of a device."""


class ThreadError(Error):
    """A call on the wrong thread or in the wrong process, as the child of a fork."""


class ForkError(ThreadError):
    """An object made before a fork was used in the child, where its threads are not."""


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps two sides from fitting."""

    field: str
    """What differs, as ``components.key.dim``."""
    producer: str
    """What the producer says."""
    consumer: str
    """What the consumer says."""
    resolve: str
    """What would resolve it."""


class RefusedError(Error):
    """Two sides do not fit. ``obstacles`` has every difference, with both values and what would resolve it."""

    obstacles: tuple[Obstacle, ...] = ()


class TransferFailed(Error):
    """A transfer ended without its pages. ``outcome`` says why, and which pages are dirty."""

    outcome: Optional[Outcome] = None


class TransferCancelled(TransferFailed):
    """A transfer was taken back by its owner."""
