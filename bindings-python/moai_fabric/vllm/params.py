"""`kv_transfer_params`: what a prefill engine answers with and a router hands to a decode engine.

The keys are those of vLLM's NIXL connector, with their meanings; ours is one more, `moai_handle`, which is opaque. They come from a
request's body, so nothing here trusts them: page ids and sizes are never read, and what names the pages is the sealed handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from . import handles
from .handles import Handle, HandleError

HANDLE = "moai_handle"


class ParamsError(ValueError):
    """The parameters of a request cannot be used; the message names the key."""


@dataclass(frozen=True)
class Remote:
    """Where a request's cache is to be had."""

    text: str
    handle: Handle
    host: str
    port: int

    @property
    def channel(self) -> str:
        """Its side channel, as host:port."""
        return f"{self.host}:{self.port}"


def wants_prefill(params: Mapping[str, Any] | None) -> bool:
    """Whether a request's cache is to come from another engine."""
    return params is not None and bool(params.get("do_remote_prefill"))


def wants_decode(params: Mapping[str, Any] | None) -> bool:
    """Whether a request's cache is to be kept for another engine."""
    return params is not None and bool(params.get("do_remote_decode"))


def remote(params: Mapping[str, Any], peers: tuple[str, ...] | None = None) -> Remote:
    """Reads where a request's cache is.

    Raises `ParamsError` for whatever is missing or wrong, and for a side channel that is not among the allowed peers.
    """
    if HANDLE not in params:
        given = ", ".join(sorted(str(key) for key in params))[:300] or "nothing"
        raise ParamsError(f"{HANDLE} is missing (given: {given}): the prefill engine must use MoaiConnector too")
    text, host, port = params[HANDLE], params.get("remote_host"), params.get("remote_port")
    try:
        handle = handles.read(text)
    except HandleError as error:
        raise ParamsError(f"{HANDLE}: {error}") from error
    if not isinstance(host, str) or not 1 <= len(host) <= 255 or any(c.isspace() or c in "/\\" for c in host):
        raise ParamsError(f"remote_host: {host!r}; expected a host name or address")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ParamsError(f"remote_port: {port!r}; expected a port from 1 to 65535")
    engine = params.get("remote_engine_id")
    if engine is not None and engine != handle.engine:
        raise ParamsError(f"remote_engine_id: {engine!r}, but the handle is of {handle.engine!r}")
    found = Remote(text, handle, host, port)
    if peers is not None and found.channel not in peers:
        raise ParamsError(f"remote_host, remote_port: {found.channel} is not among the peers of the configuration")
    return found


def answer(
    *,
    engine: str,
    request: str,
    pages: list[list[int]],
    host: str,
    port: int,
    tp_size: int,
    pp_size: int,
    tokens: int,
    handle: str,
) -> dict[str, Any]:
    """What a prefill engine's response carries for the decode engine."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": pages,
        "remote_engine_id": engine,
        "remote_request_id": request,
        "remote_host": host,
        "remote_port": port,
        "tp_size": tp_size,
        "pp_size": pp_size,
        "dcp_size": 1,
        "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        HANDLE: handle,
    }
