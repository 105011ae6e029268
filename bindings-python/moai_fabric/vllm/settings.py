"""What `kv_connector_extra_config` says, checked once.

Keys that operators know from vLLM's own connectors mean here what they mean there. Unknown keys are refused: a misspelt setting must
not silently mean its default.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, fields
from typing import Any, Mapping


class SettingsError(ValueError):
    """A setting cannot be; the message names the key, its value and what would do."""


@dataclass(frozen=True)
class Settings:
    """Checked settings. Times are in seconds."""

    # As vLLM's NIXL connector has them.
    kv_lease_duration: float = 30.0
    # Where engines ask for descriptions; by default VLLM_NIXL_SIDE_CHANNEL_HOST and _PORT, plus the data parallel index.
    side_channel_host: str = "localhost"
    side_channel_port: int = 5600
    # From a pull to its outcome, at most.
    pull_deadline: float = 60.0
    # The side channels that requests may name, as host:port; None is any.
    peers: tuple[str, ...] | None = None
    # Identifies the weights instead of what is found of the model's files.
    model_digest: str | None = None
    # Whether pages go through host memory: auto (where the pool's device cannot be reached), always, never.
    staging: str = "auto"
    # How much is digested: sample, wire or full; None is the default of the fabric.
    digest: str | None = None
    # As the MOAI_ variables of the same names; None is what the environment says.
    bind: str | None = None
    advertise: str | None = None
    transports: str | None = None
    require_path: str | None = None
    shared_key_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    allow: str | None = None
    insecure: bool | None = None
    ports: str | None = None

    @property
    def heartbeat_interval(self) -> float:
        """How often a consumer that still waits asks for its leases to be extended."""
        return self.kv_lease_duration / 6

    @property
    def extension(self) -> float:
        """By how much a heartbeat extends a lease, from now."""
        return self.kv_lease_duration * 2 / 3

    def fabric(self) -> dict[str, str]:
        """The `MOAI_` variables that are given here, by name."""
        names = ("bind", "advertise", "transports", "require_path", "shared_key_file", "tls_cert", "tls_key", "tls_ca", "allow", "ports")
        given = {f"MOAI_{name.upper()}": getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.insecure is not None:
            given["MOAI_INSECURE"] = "1" if self.insecure else "0"
        return given


# Of vLLM's connectors: what they mean does not exist here, and is said instead of ignored.
ELSEWHERE = {
    "backends": "transports are chosen with `transports`",
    "num_threads": "the fabric has one thread for each worker",
    "enforce_handshake_compat": "descriptions are compared, not versions; what cannot be joined is always refused",
    "bidirectional_kv_xfer": "a decoder does not offer its pages",
    "decoder_kv_blocks_ttl": "a decoder does not offer its pages",
    "kv_recompute_threshold": "a decoder does not offer its pages",
    "engine_ttl": "links to engines that are gone are given up by themselves",
}

WILDCARDS = ("0.0.0.0", "::", "*", "")


def parse(extra: Mapping[str, Any], data_parallel_index: int = 0, environment: Mapping[str, str] | None = None) -> Settings:
    """Reads `kv_connector_extra_config`.

    Raises `SettingsError` for unknown keys and values that cannot be.
    """
    environment = os.environ if environment is None else environment
    known = {field.name for field in fields(Settings)}
    for key in extra:
        if key not in known:
            why = ELSEWHERE.get(key, f"known keys: {', '.join(sorted(known))}")
            raise SettingsError(f"kv_connector_extra_config.{key} is not known to MoaiConnector: {why}")
    values: dict[str, Any] = {}
    host = extra.get("side_channel_host", environment.get("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost"))
    values["side_channel_host"] = _host(host)
    port = _port(extra.get("side_channel_port", environment.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "5600")))
    values["side_channel_port"] = _port(port + data_parallel_index)
    for key in ("kv_lease_duration", "pull_deadline"):
        if key in extra:
            values[key] = _seconds(key, extra[key])
    if "peers" in extra:
        values["peers"] = _peers(extra["peers"])
    for key, choices in (("staging", ("auto", "always", "never")), ("digest", ("sample", "wire", "full"))):
        if key in extra:
            values[key] = _choice(key, extra[key], choices)
    if "insecure" in extra:
        if not isinstance(extra["insecure"], bool):
            raise _wrong("insecure", extra["insecure"], "true or false")
        values["insecure"] = extra["insecure"]
    for key in known - set(values):
        if key in extra and key not in ("kv_lease_duration", "pull_deadline"):
            if not isinstance(extra[key], str) or not extra[key]:
                raise _wrong(key, extra[key], "a text")
            values[key] = extra[key]
    return Settings(**values)


def _wrong(key: str, value: Any, expected: str) -> SettingsError:
    return SettingsError(f"kv_connector_extra_config.{key}: {value!r}; expected {expected}")


def _host(host: Any) -> str:
    if not isinstance(host, str):
        raise _wrong("side_channel_host", host, "a host name or address")
    if host in WILDCARDS or _is_unspecified(host):
        # A decoder would be sent to itself.
        raise _wrong("side_channel_host", host, "the address under which decoders reach this engine, no wildcard")
    return host


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _port(port: Any) -> int:
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = -1
    if isinstance(port, bool) or not 1 <= number <= 65535:
        raise _wrong("side_channel_port", port, "a port from 1 to 65535")
    return number


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.1 <= value <= 86400:
        raise _wrong(key, value, "seconds from 0.1 to 86400")
    return float(value)


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _wrong(key, value, " or ".join(choices))
    return value


def _peers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(peer, str) and ":" in peer for peer in value):
        raise _wrong("peers", value, "a list of host:port")
    return tuple(value)
