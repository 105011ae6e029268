"""MoAI Fabric: moves KV cache between engines that are not alike, and translates it on the way.

A thin layer over the C library ``libmoai_fabric.so.1``, which the wheel has in it. See the chapter "From Python" of the book.
"""

from __future__ import annotations

from typing import Any

from . import events
from ._native import json_of, lib, utf8
from .config import Config
from .descriptor import Agreement, Cut, Descriptor, DescriptorBuilder, RegionSpec, check, layout_of_tensor, negotiate
from .engine import Engine, Node
from .errors import (
    ArgumentError,
    ClosedError,
    ConfigError,
    DescriptorError,
    Error,
    ForkError,
    HandleError,
    InternalError,
    InUseError,
    MemoryRegistrationError,
    Obstacle,
    PlatformError,
    RefusedError,
    RequestError,
    ThreadError,
    TransferCancelled,
    TransferFailed,
    UnsupportedError,
)
from .memory import Memory, TensorShape
from .report import DirtyPages, Outcome
from .request import Request
from .transfer import Grant, Offer, Transfer

__all__ = [
    "Agreement",
    "ArgumentError",
    "ClosedError",
    "Config",
    "ConfigError",
    "Cut",
    "Descriptor",
    "DescriptorBuilder",
    "DescriptorError",
    "DirtyPages",
    "Engine",
    "Error",
    "ForkError",
    "Grant",
    "HandleError",
    "InUseError",
    "InternalError",
    "Memory",
    "MemoryRegistrationError",
    "Node",
    "Obstacle",
    "Offer",
    "Outcome",
    "PlatformError",
    "RefusedError",
    "RegionSpec",
    "Request",
    "RequestError",
    "TensorShape",
    "ThreadError",
    "Transfer",
    "TransferCancelled",
    "TransferFailed",
    "UnsupportedError",
    "check",
    "describe_handle",
    "events",
    "layout_of_tensor",
    "library_version",
    "negotiate",
]


def describe_handle(handle: str) -> dict[str, Any]:
    """What a handle says: ``kind`` (``offer`` or ``grant``), ``engine``, ``epoch``, ``number``, ``tokens``, ``expires_unix_ms``, ``bound_to``.

    Not whether its engine made it: only that engine can tell.
    """
    told: dict[str, Any] = json_of(lib.moai_handle_json, utf8(handle, "handle"))
    return told


def library_version() -> str:
    """Version of the C library that was loaded."""
    version: bytes = lib.moai_version()
    return version.decode()
