"""Tensors by DLPack: what their capsules say."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_void_p, py_object
from typing import Any

from ._native import Dlpack, call, lib
from .errors import MemoryRegistrationError

__all__ = ["read"]

_HOST_DEVICES = (1, 3, 11)  # CPU, and host memory pinned by CUDA and ROCm

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, [py_object, c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = c_void_p, [py_object, c_char_p]

_NAMES = (b"dltensor", b"dltensor_versioned")


def read(tensor: Any) -> tuple[Dlpack, object]:
    """What a tensor in host memory looks like, and the capsule that keeps it."""
    kind = type(tensor).__name__
    if not hasattr(tensor, "__dlpack__") or not hasattr(tensor, "__dlpack_device__"):
        raise MemoryRegistrationError(
            f"tensor: an object of type {kind} has no __dlpack__: give a tensor, or use from_buffer or from_pointer",
            field="tensor",
            ours=kind,
            theirs="an object with __dlpack__",
        )
    try:
        device = int(tensor.__dlpack_device__()[0])
        capsule = _export(tensor) if device in _HOST_DEVICES else None
    except Exception as error:  # whatever the tensor's library raises
        raise MemoryRegistrationError(f"tensor: {kind}.__dlpack__ refuses: {error}", field="tensor", ours=kind) from error
    if device not in _HOST_DEVICES:
        raise MemoryRegistrationError(
            f"tensor: it lies on a device (DLPack's type {device}), which this release cannot reach: stage it in host memory",
            field="tensor",
            ours=f"device type {device}",
            theirs="host memory",
            hint="tensor.cpu()",
        )
    versioned = next((i for i, name in enumerate(_NAMES) if _is_valid(capsule, name)), None)
    if versioned is None:
        raise MemoryRegistrationError(
            f"tensor: {kind}.__dlpack__ returned no capsule of DLPack", field="tensor", ours=repr(capsule), theirs="a capsule named dltensor"
        )
    info = Dlpack()
    call(lib.moai_dlpack_read, _get_pointer(capsule, _NAMES[versioned]), versioned, byref(info))
    return info, capsule


def _export(tensor: Any) -> Any:
    try:
        return tensor.__dlpack__(max_version=(1, 0))
    except TypeError:  # of before DLPack 1.0
        return tensor.__dlpack__()
