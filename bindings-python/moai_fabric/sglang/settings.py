"""What the environment says, read once and checked.

| variable | meaning | default |
|---|---|---|
| `SGLANG_MOAI_PEERS` | hosts and networks on which a decoder talks to prefill servers, separated by commas | loopback |
| `SGLANG_MOAI_DEADLINE` | seconds from an offer's arrival to the outcome of its pull, at most | 60 |
| `SGLANG_MOAI_LEASE` | seconds for which a prefill server keeps the pages of an offer that nobody pulls | 60 |
| `SGLANG_MOAI_MODEL_DIGEST` | identifies the weights; peers that both give one must give the same | none |

How the fabric itself listens and proves who it is, its own variables say (`MOAI_BIND`, `MOAI_SHARED_KEY_FILE`, …).
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Mapping

PREFIX = "SGLANG_MOAI_"


class SettingsError(ValueError):
    """A setting cannot be; the message names the variable, its value and what would do."""


@dataclass(frozen=True)
class Settings:
    """Checked settings. Times are in seconds."""

    peers: tuple[str, ...] = ()
    deadline: float = 60.0
    lease: float = 60.0
    model_digest: str | None = None

    def allows(self, host: str) -> bool:
        """Whether a request may name this host: by itself, or if all its addresses lie in an allowed network."""
        if host in self.peers:
            return True
        try:
            found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        except OSError:
            return False
        return bool(found) and all(self._allows_address(address) for address in found)

    def _allows_address(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not self.peers:
            return address.is_loopback
        return any(address in network for network in map(_network, self.peers) if network is not None)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings of this process.

    Raises `SettingsError` for unknown variables of the prefix, and for values that cannot be.
    """
    environment = os.environ if environment is None else environment
    given = {name.removeprefix(PREFIX): value.strip() for name, value in environment.items() if name.startswith(PREFIX)}
    known = {"PEERS", "DEADLINE", "LEASE", "MODEL_DIGEST"}
    for name in sorted(given.keys() - known):
        raise SettingsError(f"{PREFIX}{name} is not known; known: {', '.join(PREFIX + one for one in sorted(known))}")
    values: dict = {}
    if given.get("PEERS"):
        values["peers"] = tuple(part.strip() for part in given["PEERS"].split(",") if part.strip())
    for name in ("DEADLINE", "LEASE"):
        if name in given:
            values[name.lower()] = _seconds(PREFIX + name, given[name])
    if given.get("MODEL_DIGEST"):
        values["model_digest"] = given["MODEL_DIGEST"]
    return Settings(**values)


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 86400:
        raise SettingsError(f"{name}: {text!r}; expected seconds from 0.1 to 86400")
    return value
