"""The C library: where it is found, what its functions take, and its errors as exceptions.

Everything else of the package calls it through :func:`call` and :func:`text_of`. ctypes releases the interpreter's lock in every
call, so that other threads run while one waits there.
"""

from __future__ import annotations

import ctypes
import json
import operator
import os
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Optional

from .errors import (
    ArgumentError,
    ClosedError,
    ConfigError,
    DescriptorError,
    Error,
    HandleError,
    InternalError,
    InUseError,
    MemoryRegistrationError,
    Obstacle,
    PlatformError,
    RefusedError,
    RequestError,
    ThreadError,
    UnsupportedError,
)

# ------------------------------------------------------------------ finding

ABI = 1
"""The ABI that this package is written for: that of the library's soname."""

VARIABLE = "MOAI_FABRIC_LIBRARY"
"""Names a library to be loaded instead of the one in the package."""

FILE = "libmoai_fabric.so.1"


def load() -> ctypes.CDLL:
    """Loads the library, and checks that its ABI is ours. ``ImportError`` says what to do otherwise."""
    named = os.environ.get(VARIABLE)
    path = named or str(Path(__file__).parent / FILE)
    remedy = f"set {VARIABLE} to a {FILE} of this version, or unset it" if named else f"install a wheel of moai-fabric for this machine, or set {VARIABLE} to a {FILE}"
    if not os.path.exists(path):
        raise ImportError(f"moai_fabric needs {FILE}, and there is none at {path}: {remedy}", name=__package__, path=path)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"moai_fabric cannot load {path} ({error}): {remedy}", name=__package__, path=path) from error
    try:
        library.moai_abi_version.restype = c_uint32
        library.moai_abi_version.argtypes = []
        found = int(library.moai_abi_version())
    except AttributeError as error:
        raise ImportError(f"moai_fabric loaded {path}, which is no {FILE}: it has no moai_abi_version; {remedy}", name=__package__, path=path) from error
    if found != ABI:
        raise ImportError(f"moai_fabric needs ABI {ABI}, and {path} has ABI {found}: {remedy}", name=__package__, path=path)
    try:
        for name, result, arguments in PROTOTYPES:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise ImportError(f"moai_fabric needs a later {FILE} than {path} ({error}): {remedy}", name=__package__, path=path) from error
    return library


# --------------------------------------------------------------- structures


class Structure(ctypes.Structure):
    """One that begins with its size and version, which are set."""

    keep: Any
    """What its pointers point to, where ctypes does not know it."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(type(self)), version=1, **fields)


class Dlpack(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("data", c_void_p),
        ("bytes", c_uint64),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("element_bytes", c_uint32),
        ("dims", c_uint32),
        ("shape", c_int64 * 8),
        ("strides", c_int64 * 8),
        ("is_contiguous", c_uint32),
        ("is_dense", c_uint32),
        ("is_read_only", c_uint32),
        ("reserved", c_uint32),
        ("element", c_char_p),
    ]


class Cut(ctypes.Structure):
    _fields_ = [
        ("label", c_char_p),
        ("start", c_uint64),
        ("end", c_uint64),
        ("drop", c_uint32),
        ("reserved", c_uint32),
    ]


class Tensor(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("dims", c_uint32),
        ("element_bytes", c_uint32),
        ("labels", POINTER(c_char_p)),
        ("shape", POINTER(c_uint64)),
        ("strides", POINTER(c_int64)),
        ("offset", c_int64),
        ("in_bytes", c_uint32),
        ("cut_count", c_uint32),
        ("cuts", POINTER(Cut)),
    ]


class EngineOptions(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("name", c_char_p),
        ("node", c_uint32),
        ("produces", c_uint32),
        ("consumes", c_uint32),
        ("rank_count", c_uint32),
        ("ranks", POINTER(c_uint32)),
        ("epoch", c_uint64),
        ("key", c_char_p),
        ("regions", POINTER(c_void_p)),
        ("region_count", c_uint32),
        ("counts_reuse", c_uint32),
        ("heartbeat_ns", c_uint64),
        ("loss_ns", c_uint64),
    ]


class Node(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("number", c_uint32),
        ("rank_count", c_uint32),
        ("ranks", POINTER(c_uint32)),
        ("addresses", POINTER(c_char_p)),
        ("address_count", c_uint32),
        ("reserved", c_uint32),
    ]


class Pages(ctypes.Structure):
    _fields_ = [
        ("first_rank", c_uint32),
        ("rank_count", c_uint32),
        ("group", c_uint32),
        ("page_count", c_uint32),
        ("pages", POINTER(c_uint32)),
    ]


class Request(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("tokens", c_uint32),
        ("held", c_uint32),
        ("layer_start", c_uint32),
        ("layer_end", c_uint32),
        ("digest", c_uint32),
        ("list_count", c_uint32),
        ("lists", POINTER(Pages)),
    ]


class Offer(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("number", c_uint64),
        ("request", POINTER(Request)),
        ("lease_ns", c_uint64),
        ("bound_to", c_char_p),
        ("name", c_char_p),
        ("trace", c_char_p),
        ("progressive", c_uint32),
        ("reserved", c_uint32),
    ]


class Pull(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("handle", c_char_p),
        ("request", POINTER(Request)),
        ("deadline_ns", c_uint64),
        ("name", c_char_p),
        ("by_layer", c_uint32),
        ("no_map", c_uint32),
    ]


class Grant(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("number", c_uint64),
        ("request", POINTER(Request)),
        ("lease_ns", c_uint64),
        ("deadline_ns", c_uint64),
        ("bound_to", c_char_p),
        ("name", c_char_p),
        ("by_layer", c_uint32),
        ("no_map", c_uint32),
    ]


class EventFields(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("kind", c_uint32),
        ("outcome", c_uint32),
        ("transfer", c_uint64),
        ("number", c_uint64),
        ("epoch", c_uint64),
        ("node", c_uint32),
        ("layer", c_uint32),
        ("rank", c_uint32),
        ("peer_rank", c_uint32),
        ("reason", c_uint32),
        ("fenced", c_uint32),
        ("dirty_count", c_uint32),
        ("reserved", c_uint32),
    ]


class Dirty(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("version", c_uint32),
        ("rank", c_uint32),
        ("page_count", c_uint32),
        ("pages", POINTER(c_uint32)),
        ("group", c_char_p),
    ]


_OUT = POINTER(c_void_p)  # an object or text that the library gives
_OBJECT = c_void_p
_U32 = POINTER(c_uint32)
_TEXT = POINTER(c_char_p)  # text that lives as long as its object

PROTOTYPES: list[tuple[str, Any, list[Any]]] = [
    ("moai_version", c_char_p, []),
    ("moai_status_name", c_char_p, [c_int32]),
    ("moai_text_free", c_int32, [c_void_p]),
    ("moai_last_error_status", c_int32, []),
    ("moai_last_error_json", c_char_p, []),
    ("moai_config_new", c_int32, [_OUT]),
    ("moai_config_from_env", c_int32, [_OUT]),
    ("moai_config_free", None, [_OBJECT]),
    ("moai_config_set", c_int32, [_OBJECT, c_char_p, c_char_p]),
    ("moai_config_get", c_int32, [_OBJECT, c_char_p, _OUT]),
    ("moai_config_check", c_int32, [_OBJECT]),
    ("moai_config_key_count", c_uint32, []),
    ("moai_config_key", c_char_p, [c_uint32]),
    ("moai_config_key_help", c_char_p, [c_uint32]),
    ("moai_region_new", c_int32, [c_uint32, c_uint64, _OUT]),
    ("moai_region_lend", c_int32, [c_void_p, c_uint64, c_uint32, c_int32, c_void_p, c_void_p, _OUT]),
    ("moai_region_free", None, [_OBJECT]),
    ("moai_region_pointer", c_int32, [_OBJECT, _OUT]),
    ("moai_dlpack_read", c_int32, [c_void_p, c_uint32, POINTER(Dlpack)]),
    ("moai_tensor_layout", c_int32, [POINTER(Tensor), c_char_p, _OUT]),
    ("moai_descriptor_from_json", c_int32, [c_char_p, _OUT]),
    ("moai_descriptor_free", None, [_OBJECT]),
    ("moai_descriptor_json", c_int32, [_OBJECT, _OUT]),
    ("moai_descriptor_digest", c_int32, [_OBJECT, c_char_p]),
    ("moai_descriptor_layers", c_int32, [_OBJECT, _U32]),
    ("moai_descriptor_ranks", c_int32, [_OBJECT, _U32]),
    ("moai_descriptor_groups", c_int32, [_OBJECT, _U32]),
    ("moai_descriptor_group_name", c_int32, [_OBJECT, c_uint32, _OUT]),
    ("moai_descriptor_regions", c_int32, [_OBJECT, c_uint32, _U32]),
    ("moai_descriptor_region_bytes", c_int32, [_OBJECT, c_uint32, c_uint32, POINTER(c_uint64)]),
    ("moai_descriptor_region_name", c_int32, [_OBJECT, c_uint32, c_uint32, _OUT]),
    ("moai_descriptor_pages_needed", c_int32, [_OBJECT, c_uint32, c_uint32, c_uint32, POINTER(c_uint64)]),
    ("moai_negotiate", c_int32, [_OBJECT, _OBJECT, _OUT]),
    ("moai_agreement_free", None, [_OBJECT]),
    ("moai_agreement_digest", c_int32, [_OBJECT, c_char_p]),
    ("moai_agreement_text", c_int32, [_OBJECT, _OUT]),
    ("moai_agreement_json", c_int32, [_OBJECT, _OUT]),
    ("moai_engine_new", c_int32, [_OBJECT, _OBJECT, POINTER(EngineOptions), _OUT]),
    ("moai_engine_close", c_int32, [_OBJECT]),
    ("moai_engine_free", None, [_OBJECT]),
    ("moai_engine_address_count", c_int32, [_OBJECT, _U32]),
    ("moai_engine_address", c_int32, [_OBJECT, c_uint32, _OUT]),
    ("moai_engine_epoch", c_int32, [_OBJECT, POINTER(c_uint64)]),
    ("moai_engine_know", c_int32, [_OBJECT, c_char_p, POINTER(Node), c_uint32]),
    ("moai_engine_follow", c_int32, [_OBJECT, POINTER(c_char_p), c_uint32]),
    ("moai_engine_announce", c_int32, [_OBJECT]),
    ("moai_engine_offer", c_int32, [_OBJECT, POINTER(Offer), _OUT]),
    ("moai_engine_layer_ready", c_int32, [_OBJECT, c_uint64, c_uint32, c_uint32]),
    ("moai_engine_extend", c_int32, [_OBJECT, c_uint64, c_uint64]),
    ("moai_engine_withdraw", c_int32, [_OBJECT, c_uint64]),
    ("moai_engine_reuse", c_int32, [_OBJECT, c_uint32, c_uint32]),
    ("moai_engine_push", c_int32, [_OBJECT, c_uint64, c_char_p]),
    ("moai_engine_pull", c_int32, [_OBJECT, POINTER(Pull), POINTER(c_uint64)]),
    ("moai_engine_cancel", c_int32, [_OBJECT, c_uint64]),
    ("moai_engine_grant", c_int32, [_OBJECT, POINTER(Grant), _OUT]),
    ("moai_engine_revoke", c_int32, [_OBJECT, c_uint64]),
    ("moai_handle_json", c_int32, [c_char_p, _OUT]),
    ("moai_event_free", None, [_OBJECT]),
    ("moai_engine_poll", c_int32, [_OBJECT, c_uint64, _OUT]),
    ("moai_engine_fd", c_int32, [_OBJECT, POINTER(c_int32)]),
    ("moai_event_read", c_int32, [_OBJECT, POINTER(EventFields)]),
    ("moai_event_engine", c_int32, [_OBJECT, _TEXT]),
    ("moai_event_message", c_int32, [_OBJECT, _TEXT]),
    ("moai_event_handle", c_int32, [_OBJECT, _TEXT]),
    ("moai_event_report", c_int32, [_OBJECT, _TEXT]),
    ("moai_event_dirty", c_int32, [_OBJECT, c_uint32, POINTER(Dirty)]),
    ("moai_engine_stats", c_int32, [_OBJECT, _OUT]),
    ("moai_engine_metrics", c_int32, [_OBJECT, _OUT]),
    ("moai_engine_ready", c_int32, [_OBJECT, _U32, _OUT]),
]
"""Every function that the package calls: its name, what it returns, and its arguments, as in ``moai_fabric.h``."""

OK = 0
TIMEOUT = 1
OVER = 16
ABSENT = 20
INCOMPATIBLE = 9

_EXCEPTIONS: dict[int, type[Error]] = {
    2: ArgumentError,
    3: ClosedError,
    5: ArgumentError,
    6: ArgumentError,
    7: ConfigError,
    8: DescriptorError,
    9: RefusedError,
    10: MemoryRegistrationError,
    11: UnsupportedError,
    12: MemoryRegistrationError,
    13: RequestError,
    14: HandleError,
    15: PlatformError,
    16: ClosedError,
    17: ThreadError,
    18: InUseError,
    19: InternalError,
}

lib = load()

# ------------------------------------------------------------------ calling


def _text(value: Optional[bytes]) -> Optional[str]:
    return value.decode("utf-8", "replace") if value else None


def failure(status: int) -> Error:
    """The exception for a status that a call on this thread has just returned."""
    name = _text(lib.moai_status_name(status)) or "unknown"
    kind = _EXCEPTIONS.get(status, Error)
    told = _text(lib.moai_last_error_json()) if lib.moai_last_error_status() == status else None
    if told is None:
        return kind(f"the library says {name} and nothing else", status=status, status_name=name)
    info = json.loads(told)
    error = kind(
        info["message"] or name,
        status=status,
        status_name=name,
        field=info["field"] or None,
        ours=info["ours"] or None,
        theirs=info["theirs"] or None,
        hint=info["hint"] or None,
    )
    if isinstance(error, RefusedError):
        error.obstacles = tuple(Obstacle(o["field"], o["producer"], o["consumer"], o["resolve"]) for o in info.get("obstacles", ()))
    return error


def call(function: Any, *arguments: Any) -> None:
    """Calls a function that returns a status; what is no success is an exception."""
    status = function(*arguments)
    if status != OK:
        raise failure(status)


def new(function: Any, *arguments: Any) -> int:
    """Calls a function whose last output is an object, and returns it."""
    made = c_void_p()
    call(function, *arguments, byref(made))
    return made.value or 0


def text_of(function: Any, *arguments: Any) -> str:
    """Calls a function whose last output is text, and returns it."""
    text = c_void_p()
    call(function, *arguments, byref(text))
    try:
        return ctypes.string_at(text.value or 0).decode("utf-8")
    finally:
        lib.moai_text_free(text)


def json_of(function: Any, *arguments: Any) -> Any:
    """Calls a function whose last output is JSON, and returns what it says."""
    return json.loads(text_of(function, *arguments))


def pointer(structure: ctypes.Structure) -> Any:
    """A pointer to a structure, which keeps it."""
    return ctypes.pointer(structure)


# ---------------------------------------------------------------- arguments


def utf8(value: object, field: str, wrong: type[Error] = ArgumentError) -> bytes:
    """Text as the library takes it."""
    if not isinstance(value, str):
        raise wrong(f"{field}: {value!r} is of type {type(value).__name__}, but text is expected", field=field, ours=repr(value))
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise wrong(f"{field}: {value!r} is not text in UTF-8: {error.reason}", field=field, ours=repr(value)) from error
    if b"\0" in encoded:
        raise wrong(f"{field}: {value!r} has a zero character in it, which ends text", field=field, ours=repr(value))
    return encoded


def utf8_or_none(value: Optional[str], field: str) -> Optional[bytes]:
    return None if value is None else utf8(value, field)


def whole(value: object, field: str, bits: int = 32, wrong: type[Error] = ArgumentError) -> int:
    """A whole number that fits into so many bits without a sign."""
    most = (1 << bits) - 1
    if isinstance(value, bool):
        raise wrong(f"{field}: {value!r} is a truth value, but a whole number is expected", field=field, ours=repr(value))
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise wrong(f"{field}: {value!r} is of type {type(value).__name__}, but a whole number is expected", field=field, ours=repr(value)) from None
    if not 0 <= number <= most:
        raise wrong(f"{field}: {number} is not between 0 and {most}", field=field, ours=str(number), theirs=f"0 to {most}")
    return number


def nanoseconds(value: object, field: str) -> int:
    """A span of time, given in seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = type(value).__name__
        raise ArgumentError(f"{field}: {value!r} is of type {kind}, but seconds are expected", field=field, ours=repr(value))
    if not 0 <= value <= MOST_SECONDS:  # also what is no number
        raise ArgumentError(
            f"{field}: {value} s is not between 0 and {MOST_SECONDS} s", field=field, ours=str(value), theirs=f"0 to {MOST_SECONDS}"
        )
    return int(value * 1e9)


MOST_SECONDS = 10 * 365 * 86_400
"""Ten years: what is longer is a mistake, and stays clear of where nanoseconds overflow."""
