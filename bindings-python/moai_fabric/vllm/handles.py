"""Handles that a scheduler seals for offers its workers make.

A request's handle is in its response, which the scheduler gives before a worker hears of the request's end. The format is that of the
book's chapter on links, offers and handles; all processes of an engine have its key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from dataclasses import dataclass

VERSION = 1
OFFER = 0
SEAL_BYTES = 32
# Two engine names of 96 bytes, 112 bytes of fields and seal, as base64.
MAX_TEXT = (2 * 96 + 112) * 4 // 3 + 4
ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")


class HandleError(ValueError):
    """Something is no handle of an offer."""


@dataclass(frozen=True)
class Handle:
    """What a handle says. Nobody but its engine knows whether that engine said so."""

    engine: str
    epoch: int
    number: int
    tokens: int
    expires_unix_ms: int


def page_set(groups: list[list[int]]) -> bytes:
    """The digest of the page lists of all groups, in order."""
    digest = hashlib.sha256(b"moai pages\0")
    for pages in groups:
        digest.update(struct.pack("<Q", len(pages)))
        digest.update(struct.pack(f"<{len(pages)}I", *pages))
    return digest.digest()[:16]


def seal(handle: Handle, pages: bytes, key: bytes) -> str:
    """The text of a sealed handle, for any engine that may link to the one it names."""
    check_engine_name(handle.engine)
    name = handle.engine.encode()
    said = struct.pack("<BBB", VERSION, OFFER, len(name)) + name
    said += struct.pack("<QQ16sIQB", handle.epoch, handle.number, pages, handle.tokens, handle.expires_unix_ms, 0)
    mac = hmac.new(key, b"moai handle\0" + said, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(said + mac).rstrip(b"=").decode()


def read(text: object) -> Handle:
    """Reads a handle's text; the seal is not checked.

    Raises `HandleError`.
    """
    if not isinstance(text, str) or not text.isascii() or len(text) > MAX_TEXT:
        raise HandleError(f"a handle is text of at most {MAX_TEXT} characters")
    try:
        said = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, kind, length = struct.unpack_from("<BBB", said)
        if version != VERSION:
            raise HandleError(f"handle version {version} is not known here; this build reads {VERSION}")
        if kind != OFFER:
            raise HandleError(f"a handle of kind {kind}; expected an offer's, {OFFER}")
        engine = said[3 : 3 + length].decode("ascii")
        epoch, number, _, tokens, expires, bound = struct.unpack_from("<QQ16sIQB", said, 3 + length)
    except (ValueError, struct.error) as error:
        raise error if isinstance(error, HandleError) else HandleError(f"not a handle: {error}") from error
    if len(said) != 3 + length + 45 + bound + SEAL_BYTES:
        raise HandleError(f"a handle of {len(said)} bytes; expected {3 + length + 45 + bound + SEAL_BYTES}")
    check_engine_name(engine)
    return Handle(engine, epoch, number, tokens, expires)


def is_sealed_by(text: str, key: bytes) -> bool:
    """Whether the holder of a key made a handle."""
    said = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    said, mac = said[:-SEAL_BYTES], said[-SEAL_BYTES:]
    return hmac.compare_digest(mac, hmac.new(key, b"moai handle\0" + said, hashlib.sha256).digest())


def check_engine_name(name: str) -> None:
    """Raises `HandleError` if a text cannot name an engine."""
    if not ENGINE_NAME.match(name):
        raise HandleError(
            f"engine_id {name!r}: expected 1 to 96 letters, digits, '.', '_' and '-', a letter or digit first: choose another engine_id"
        )
