"""Memory that a cache lies in."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any, Optional

from . import _dlpack
from ._native import lib, call, new, whole
from ._object import Object, check_process
from .errors import ArgumentError, ClosedError, MemoryRegistrationError

__all__ = ["Memory", "TensorShape"]

_KINDS = {"host": 1, "pinned": 2, "shared": 3, "cuda": 101, "rocm": 102}


@dataclass(frozen=True)
class TensorShape:
    """What a tensor that was registered looks like."""

    element: str
    """Its elements as descriptions name them (``bf16``, ``f32``, ``e4m3fn``); empty if none of these."""
    element_bytes: int
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    """From one index to the next, for each dimension."""
    contiguous: bool
    """Whether it is row-major without gaps."""


class _Region:
    """A region of the library, and whatever must live as long as it."""

    def __init__(self, pointer: int, length: int, kind: str, owner: object) -> None:
        self.object = Object(pointer, lib.moai_region_free)
        self.length = length
        self.kind = kind
        self.owner = owner
        self.process = os.getpid()
        address = c_void_p()
        call(lib.moai_region_pointer, pointer, byref(address))
        self.address = address.value or 0


class Memory:
    """Registered memory: a region that an engine reads and writes.

    It is made by :meth:`allocate`, :meth:`from_buffer`, :meth:`from_dlpack` or :meth:`from_pointer`. What it was made from is
    kept alive, and its buffer stays exported, until this object, every engine that has it and every :meth:`view` of it are gone.
    """

    def __init__(self) -> None:
        raise TypeError("Memory is made by Memory.allocate, from_buffer, from_dlpack or from_pointer")

    _region: Optional[_Region]
    _tensor: Optional[TensorShape]

    @classmethod
    def _of(cls, region: _Region, tensor: Optional[TensorShape] = None) -> Memory:
        memory = cls.__new__(cls)
        memory._region = region
        memory._tensor = tensor
        return memory

    @classmethod
    def allocate(cls, length: int, kind: str = "shared") -> Memory:
        """Allocates ``length`` zeroed bytes.

        Args:
            length: Bytes.
            kind: ``shared`` (other processes of the host may map it, so that nothing need be sent), ``pinned`` or ``host``.

        Raises:
            MemoryRegistrationError: The system does not give it.
        """
        length = _length(length)
        return cls._of(_Region(new(lib.moai_region_new, _kind(kind, "kind"), length), length, kind, None))

    @classmethod
    def from_buffer(cls, buffer: Any) -> Memory:
        """Registers an object with the buffer protocol: ``bytearray``, ``array``, ``mmap``, a numpy array.

        Raises:
            MemoryRegistrationError: It is read-only, empty or not contiguous (``field`` is ``buffer``).
        """
        try:
            view = memoryview(buffer)
        except (TypeError, ValueError, BufferError) as error:
            kind = type(buffer).__name__
            raise MemoryRegistrationError(
                f"buffer: an object of type {kind} gives no buffer ({error}): give one that has, or use from_dlpack or from_pointer",
                field="buffer",
                ours=kind,
                theirs="an object with the buffer protocol",
            ) from error
        with view:
            if view.readonly:
                raise MemoryRegistrationError(
                    "buffer: it is read-only, and engines write to memory: give a writable one",
                    field="buffer",
                    ours="read-only",
                    theirs="writable",
                )
            if not view.c_contiguous:
                raise MemoryRegistrationError(
                    f"buffer: it is not contiguous (shape {view.shape}, strides {view.strides}): register the whole allocation it is a view of",
                    field="buffer",
                    ours=f"strides {view.strides}",
                    theirs="contiguous",
                )
            length = view.nbytes
            if length == 0:
                raise MemoryRegistrationError("buffer: it is empty; expected at least a byte", field="buffer", ours="0", theirs="1 or more")
            # The array holds the export: who owns the buffer cannot resize it meanwhile.
            export = (ctypes.c_ubyte * length).from_buffer(buffer)
        return cls.from_pointer(ctypes.addressof(export), length, owner=export)

    @classmethod
    def from_dlpack(cls, tensor: Any, *, contiguous: bool = True) -> Memory:
        """Registers a tensor with ``__dlpack__``, as those of numpy and torch, in host memory. :attr:`tensor` says what it looks like.

        Args:
            tensor: The tensor. Its memory is kept until it is not needed any more.
            contiguous: Whether one that is not row-major is refused. If not, its dimensions may be in any order, without gaps.

        Raises:
            MemoryRegistrationError: It is read-only, not contiguous, empty, or not in host memory (``field`` is ``tensor``).
        """
        info, capsule = _dlpack.read(tensor)
        if info.is_read_only:
            raise _refused("tensor: it is read-only, and engines write to memory: give a writable one", "read-only", "writable")
        shape, each = info.shape[: info.dims], info.element_bytes
        if not (info.is_contiguous or (info.is_dense and not contiguous)):
            strides = info.strides[: info.dims]
            raise _refused(
                f"tensor: it is not contiguous (shape {shape}, strides {strides}): register the whole tensor that it is a view of",
                f"strides {strides}",
                "contiguous" if contiguous else "dense",
            )
        if info.bytes == 0:
            raise _refused(f"tensor: it is empty (shape {shape}); expected at least a byte", "0", "1 or more")
        told = TensorShape(
            element=info.element.decode(),
            element_bytes=each,
            shape=tuple(shape),
            strides_bytes=tuple(stride * each for stride in info.strides[: info.dims]),
            contiguous=bool(info.is_contiguous),
        )
        # The capsule was not renamed: it is what lets the tensor go, once nobody has it any more.
        memory = cls.from_pointer(info.data, info.bytes, "host", owner=capsule)
        memory._tensor = told
        return memory

    @classmethod
    def from_pointer(cls, address: int, length: int, kind: str = "host", *, device: int = 0, owner: object = None) -> Memory:
        """Registers memory by its address. It must be valid and writable until this, every engine with it and every view are gone.

        Args:
            address: Of the first byte, as ``tensor.data_ptr()``.
            length: Bytes.
            kind: ``host``; ``pinned`` if it is locked.
            device: Number of the device; 0 for host memory.
            owner: Is kept alive as long.

        Raises:
            MemoryRegistrationError: It is of a kind that this release cannot reach.
        """
        address = whole(address, "address", 64)
        if address == 0:
            raise ArgumentError("address: it is null; expected that of the first byte", field="address", ours="0")
        length = _length(length)
        # Whoever has the region keeps the owner, so nobody need be told that it is not needed any more.
        region = new(lib.moai_region_lend, address, length, _kind(kind, "kind"), whole(device, "device", 31), None, None)
        return cls._of(_Region(region, length, kind, owner))

    @property
    def address(self) -> int:
        """Of the first byte, in this process."""
        return self._living().address

    @property
    def length(self) -> int:
        """Bytes."""
        return self._living().length

    @property
    def kind(self) -> str:
        """``host``, ``pinned`` or ``shared``."""
        return self._living().kind

    @property
    def tensor(self) -> Optional[TensorShape]:
        """The tensor that it was made from by :meth:`from_dlpack`."""
        return self._tensor

    def view(self) -> memoryview:
        """Its bytes, writable; for ``numpy.frombuffer`` or ``torch.frombuffer``. The memory lives as long as the view.

        Pages that are being transferred into hold anything until their transfer has ended.
        """
        region = self._living()
        array = (ctypes.c_ubyte * region.length).from_address(region.address)
        setattr(array, "_region", region)  # noqa: B010 - an attribute that no array is known to have
        return memoryview(array).cast("B")

    def close(self) -> None:
        """Gives it up. It is freed once no engine has it and no view is left."""
        self._region = None

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        if self._region is None:
            return "<Memory, closed>"
        return f"<Memory of {self._region.length} bytes, {self._region.kind}>"

    def _living(self) -> _Region:
        if self._region is None:
            raise ClosedError("the memory was closed before; register it again", field="memory")
        check_process(self._region.process, "the memory")
        return self._region


def _refused(message: str, ours: str, theirs: str) -> MemoryRegistrationError:
    return MemoryRegistrationError(message, field=message.split(":")[0], ours=ours, theirs=theirs)


def _length(length: object) -> int:
    bytes_ = whole(length, "length", 63)
    if bytes_ == 0:
        raise MemoryRegistrationError("length: 0 bytes are no memory; expected at least one", field="length", ours="0", theirs="1 or more")
    return bytes_


def _kind(kind: object, field: str) -> int:
    if not isinstance(kind, str) or kind not in _KINDS:
        names = ", ".join(_KINDS)
        raise ArgumentError(f"{field}: {kind!r} is no kind of memory; expected one of {names}", field=field, ours=repr(kind), theirs=names)
    return _KINDS[kind]
