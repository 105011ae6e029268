"""Memory: what may be registered, what is refused, and how long it lives."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moai_fabric as moai


@pytest.mark.parametrize("kind", ["shared", "host", "pinned"])
def test_allocated_memory_is_zeroed_and_writable(kind: str) -> None:
    memory = moai.Memory.allocate(4096, kind)
    assert (memory.length, memory.kind, len(memory)) == (4096, kind, 4096)
    view = memory.view()
    assert bytes(view) == bytes(4096)
    view[7] = 9
    assert ctypes.c_ubyte.from_address(memory.address + 7).value == 9
    numbers = np.frombuffer(memory.view(), np.uint32)
    numbers[:] = 3
    assert view[4] == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(64),
        lambda: array.array("d", [0.0] * 8),
        lambda: memoryview(bytearray(64)),
        lambda: mmap.mmap(-1, 64),
        lambda: np.zeros((4, 4), np.float32),
        lambda: (ctypes.c_uint64 * 8)(),
        lambda: np.zeros((), np.uint64),
        lambda: np.zeros(4, [("a", "<u4"), ("b", ">f8")]),
    ],
)
def test_buffers_are_registered_where_they_are(make: Callable[[], Any]) -> None:
    buffer = make()
    memory = moai.Memory.from_buffer(buffer)
    assert memory.length == memoryview(buffer).nbytes
    memory.view()[0] = 5
    assert memoryview(buffer).tobytes()[0] == 5


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        (lambda: b"read-only", "read-only"),
        (lambda: bytearray(), "0"),
        (lambda: np.zeros((4, 4))[:, 1], "strides"),
        (lambda: np.asfortranarray(np.zeros((4, 3))), "strides"),
        (lambda: 5, "int"),
        (lambda: None, "NoneType"),
    ],
)
def test_buffers_that_engines_could_not_write_are_refused(make: Callable[[], Any], ours: str) -> None:
    with pytest.raises(moai.MemoryRegistrationError) as error:
        moai.Memory.from_buffer(make())
    assert error.value.field == "buffer"
    assert ours in (error.value.ours or "")


def test_a_registered_buffer_cannot_be_resized_until_nobody_has_it() -> None:
    buffer = bytearray(64)
    memory = moai.Memory.from_buffer(buffer)
    view = memory.view()
    with pytest.raises(BufferError):
        buffer.append(1)
    memory.close()
    with pytest.raises(BufferError):
        buffer.append(1)
    del view, memory
    gc.collect()
    buffer.append(1)


def test_what_memory_was_made_of_lives_as_long_as_its_last_view() -> None:
    numbers = np.zeros(16, np.uint8)
    alive = weakref.ref(numbers)
    memory = moai.Memory.from_pointer(numbers.ctypes.data, 16, owner=numbers)
    view = memory.view()
    del numbers, memory
    gc.collect()
    view[3] = 1
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_a_view_of_allocated_memory_outlives_its_object() -> None:
    numbers = np.frombuffer(moai.Memory.allocate(1 << 20, "shared").view(), np.uint8)
    gc.collect()
    numbers[:] = 1
    assert int(numbers.sum()) == 1 << 20


def test_tensors_are_registered_by_dlpack() -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    memory = moai.Memory.from_dlpack(tensor)
    assert memory.address == tensor.ctypes.data
    assert memory.tensor == moai.TensorShape("f32", 4, (2, 3, 4), (48, 16, 4), True)
    alive = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert alive() is not None, "the capsule keeps it"
    assert np.frombuffer(memory.view(), np.float32)[23] == 23
    del memory
    gc.collect()
    assert alive() is None


def test_a_tensor_of_another_order_is_registered_only_if_that_is_asked_for() -> None:
    tensor = np.zeros((4, 6), np.float32).T
    with pytest.raises(moai.MemoryRegistrationError) as error:
        moai.Memory.from_dlpack(tensor)
    assert error.value.field == "tensor" and "contiguous" in str(error.value)
    memory = moai.Memory.from_dlpack(tensor, contiguous=False)
    assert memory.tensor is not None and memory.tensor.strides_bytes == (4, 24)
    with pytest.raises(moai.MemoryRegistrationError):
        moai.Memory.from_dlpack(np.zeros((4, 6), np.float32)[:, ::2], contiguous=False)


def test_buffers_that_are_gone_are_refused() -> None:
    released = memoryview(bytearray(8))
    released.release()
    closed = mmap.mmap(-1, 64)
    closed.close()
    for buffer in (released, closed):
        with pytest.raises(moai.MemoryRegistrationError) as error:
            moai.Memory.from_buffer(buffer)
        assert error.value.field == "buffer"


class Odd:
    """Says that it is a tensor."""

    def __init__(self, device: int = 1, capsule: object = None) -> None:
        self.device = device
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **_: object) -> object:
        if isinstance(self.capsule, BaseException):
            raise self.capsule
        return self.capsule


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (Odd(device=2), "device"),
        (Odd(capsule=5), "capsule"),
        (Odd(capsule=RuntimeError("it has gradients")), "gradients"),
        (bytearray(8), "__dlpack__"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tensor: object, says: str) -> None:
    with pytest.raises(moai.MemoryRegistrationError) as error:
        moai.Memory.from_dlpack(tensor)
    assert error.value.field == "tensor"
    assert says in str(error.value)


def test_a_tensor_without_elements_names_its_dimension() -> None:
    with pytest.raises(moai.MemoryRegistrationError) as error:
        moai.Memory.from_dlpack(np.zeros((0, 3), np.float32))
    assert error.value.field == "shape[0]"


def test_a_capsule_that_was_consumed_is_none() -> None:
    tensor = np.zeros(4, np.float32)
    capsule = tensor.__dlpack__()
    np.from_dlpack(Odd(capsule=capsule))  # type: ignore[arg-type]
    with pytest.raises(moai.MemoryRegistrationError):
        moai.Memory.from_dlpack(Odd(capsule=capsule))


def test_pointers_that_cannot_be_are_refused() -> None:
    for address, length, kind, field in [
        (0, 8, "host", "address"),
        (-1, 8, "host", "address"),
        (1 << 64, 8, "host", "address"),
        ("x", 8, "host", "address"),
        (4096, 0, "host", "length"),
        (4096, -8, "host", "length"),
        (4096, 8, "hots", "kind"),
    ]:
        with pytest.raises(moai.Error) as error:
            moai.Memory.from_pointer(address, length, kind)  # type: ignore[arg-type]
        assert error.value.field == field, (address, length, kind)


def test_memory_of_a_device_is_unsupported_by_name() -> None:
    with pytest.raises(moai.UnsupportedError) as error:
        moai.Memory.from_pointer(4096, 64, "cuda")
    assert error.value.field == "kind" and "CUDA" in str(error.value) and error.value.hint


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(moai.Error):
        moai.Memory.allocate(1 << 60, "host")


def test_closed_memory_is_of_no_use() -> None:
    memory = moai.Memory.allocate(64)
    memory.close()
    memory.close()
    for use in (lambda: memory.address, memory.view, lambda: len(memory)):
        with pytest.raises(moai.ClosedError):
            use()
    assert "closed" in repr(memory)


def test_memory_is_made_by_its_methods_only() -> None:
    with pytest.raises(TypeError, match="from_buffer"):
        moai.Memory()
