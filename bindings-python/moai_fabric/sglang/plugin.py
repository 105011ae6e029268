"""Adds the backend to SGLang: written for 0.5.23, whose names are used exactly.

SGLang keeps its backends in an enumeration and picks classes in one function; both are met with what its plug-in framework offers, and
nothing of SGLang's files is changed.
"""

from __future__ import annotations

import contextvars
import logging
from importlib.metadata import PackageNotFoundError, version

NAME = "moai"
# Whose names are used.
SGLANG = "0.5.23"

logger = logging.getLogger(f"sglang.{__name__}")

# The queue that builds a manager: SGLang gives managers addresses and lengths, and the pool that they came from is needed to probe it.
building: contextvars.ContextVar = contextvars.ContextVar("building")


def register() -> None:
    """The entry point: called once in every process of a server, before it starts."""
    from sglang.srt.arg_groups.choices import DISAGG_TRANSFER_BACKEND_CHOICES, add_disagg_transfer_backend_choices
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    found = sglang_version()
    if found != SGLANG:
        logger.warning("moai: the backend is written for SGLang %s, and this is %s: it may not be found, or fail", SGLANG, found)
    if NAME not in DISAGG_TRANSFER_BACKEND_CHOICES:
        add_disagg_transfer_backend_choices([NAME])
    _add_member()
    HookRegistry.register("sglang.srt.disaggregation.utils.get_kv_class", _kv_class, HookType.AROUND)
    for queue in ("prefill.PrefillBootstrapQueue", "decode.DecodePreallocQueue"):
        HookRegistry.register(f"sglang.srt.disaggregation.{queue}._init_kv_manager", _build, HookType.AROUND)


def sglang_version() -> str:
    """Of the SGLang that is installed."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return "of an unknown version"


def _add_member() -> None:
    """`TransferBackend("moai")` is a value of the enumeration from now on."""
    from sglang.srt.disaggregation.utils import TransferBackend

    if NAME in TransferBackend._value2member_map_:
        return
    member = object.__new__(TransferBackend)
    member._name_, member._value_ = NAME.upper(), NAME
    member.__objclass__ = TransferBackend
    member._sort_order_ = len(TransferBackend._member_names_)
    TransferBackend._member_names_.append(member._name_)
    TransferBackend._member_map_[member._name_] = member
    TransferBackend._value2member_map_[NAME] = member
    type.__setattr__(TransferBackend, member._name_, member)


def _kv_class(original, transfer_backend, class_type):
    from sglang.srt.disaggregation.utils import KVClassType

    if getattr(transfer_backend, "value", None) != NAME or class_type == KVClassType.KVARGS:
        return original(transfer_backend, class_type)
    # Only now: these need SGLang's scheduler, which other processes of a server do not load.
    from .bootstrap import MoaiKVBootstrapServer
    from .manager import MoaiKVManager
    from .receiver import MoaiKVReceiver
    from .sender import MoaiKVSender

    return {
        KVClassType.MANAGER: MoaiKVManager,
        KVClassType.SENDER: MoaiKVSender,
        KVClassType.RECEIVER: MoaiKVReceiver,
        KVClassType.BOOTSTRAP_SERVER: MoaiKVBootstrapServer,
    }[class_type]


def _build(original, queue):
    token = building.set(queue)
    try:
        return original(queue)
    finally:
        building.reset(token)
