"""Finds where a pool really puts the elements of a page.

The name of a layout, and even the shape of the tensors that hold it, are claims. So patterns are written through the pool's own store
operation into a page that nobody uses yet, and read back from the bare bytes: one pass for each bit of an element's number says where the
element landed. From that follows a layout in the fabric's notation, or a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch


class Unexplained(ValueError):
    """What a pool does with a page cannot be described; the message says what was seen."""


@dataclass(frozen=True)
class Part:
    """Where the rows of one component lie within a page. Bytes."""

    name: str
    heads: int
    slots: int
    dim: int
    element: str
    page_stride: int
    offset: int
    # Words of the notation and their strides, the outermost first.
    words: tuple[tuple[str, int], ...]

    def layout(self, regions: str) -> dict:
        """For a description; `regions` are the bracketed axes."""
        strides = {"page": self.page_stride, **dict(self.words)}
        text = " ".join([regions, *strides])
        return {"text": text, "offset_bytes": self.offset, "strides_bytes": strides}


# Codes of 1.0 and 1.5, which tell the formats of a width apart.
CODES = {
    (4, 0x3F800000, 0x3FC00000): "f32",
    (2, 0x3F80, 0x3FC0): "bf16",
    (2, 0x3C00, 0x3E00): "f16",
    (1, 0x38, 0x3C): "e4m3fn",
    (1, 0x40, 0x44): "e4m3fnuz",
    (1, 0x3C, 0x3E): "e5m2",
    (1, 0x40, 0x42): "e5m2fnuz",
}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bare(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that a tensor reaches, as numbers in the order of their addresses."""
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride()))
    flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    flat.set_(tensor.untyped_storage(), tensor.storage_offset(), (last + 1,), (1,))
    return flat.view(INTEGERS[tensor.element_size()])


def probe(name: str, tensor: torch.Tensor, pages: int, shape: tuple[int, int, int], store: Callable[[int, torch.Tensor], None]) -> Part:
    """The layout of a component in a tensor of `pages` pages.

    `shape` is (slots, heads, dim); `store(page, rows)` writes float32 rows of that shape into a page by the pool's own operation.
    The two last pages are written to, and are as they were afterwards. Raises `Unexplained`.
    """
    numbers = bare(tensor)
    if numbers.numel() % pages or pages < 2:
        raise Unexplained(f"{name}: {numbers.numel()} elements in {pages} pages; expected a whole number in each of two or more")
    stride = numbers.numel() // pages
    last, before = numbers[(pages - 1) * stride :], numbers[(pages - 2) * stride : (pages - 1) * stride]
    kept = numbers[(pages - 2) * stride :].clone()
    try:
        count = shape[0] * shape[1] * shape[2]
        rows = torch.ones(shape, device=tensor.device)
        for page, seen, other in ((pages - 2, before, last), (pages - 1, last, before)):
            numbers[(pages - 2) * stride :] = 0
            store(page, rows)
            found, strayed = int((seen != 0).sum()), int((other != 0).sum())
            if found != count or strayed:
                raise Unexplained(f"{name}: {count} elements were stored in page {page}; {found} are there, {strayed} in the page beside it")
        held = (last != 0).nonzero().flatten()
        one = _code(last[held])
        store(pages - 1, rows * 1.5)
        element = CODES.get((tensor.element_size(), one, _code(last[held])))
        if element is None:
            raise Unexplained(f"{name}: 1.0 is stored as {one:#x} and 1.5 as {_code(last[held]):#x}, which no known format does")
        index = torch.arange(count, device=tensor.device)
        landed = torch.zeros_like(index)
        for bit in range((count - 1).bit_length()):
            store(pages - 1, (index >> bit & 1).float().reshape(shape))
            landed |= (last[held] != 0).long() << bit
        if not torch.equal(landed.sort().values, index):
            raise Unexplained(f"{name}: elements of a page do not land each in a place of its own")
    finally:
        numbers[(pages - 2) * stride :] = kept
    at = torch.empty_like(held)
    at[landed] = held
    return _fit(name, at.reshape(shape).cpu(), element, stride, tensor.element_size())


def _code(numbers: torch.Tensor) -> int:
    """The one number that all are."""
    first = int(numbers[0])
    if not bool((numbers == first).all()):
        raise Unexplained(f"one value is stored as {first:#x} and as other codes")
    return first & (1 << 8 * numbers.element_size()) - 1


def _fit(name: str, at: torch.Tensor, element: str, page_stride: int, size: int) -> Part:
    """The layout of elements that lie at these places, as [slot, head, dim]."""
    base = int(at[0, 0, 0])
    lines = {"slot": at[:, 0, 0], "head": at[0, :, 0], "dim": at[0, 0, :]}
    words: list[tuple[str, int]] = []
    for axis, line in lines.items():
        words += _words(name, axis, (line - base).tolist())
    slots, heads, dim = at.shape
    grids = dict(zip(lines, torch.meshgrid(torch.arange(slots), torch.arange(heads), torch.arange(dim), indexing="ij")))
    said = torch.full_like(at, base)
    for word, stride in words:
        said += _index(word, grids) * stride
    if not torch.equal(said, at):
        raise Unexplained(f"{name}: slot, head and dim are not independent of each other: {words} describes single rows only")
    words.sort(key=lambda word: -word[1])
    return Part(name, heads, slots, dim, element, page_stride * size, base * size, tuple((word, stride * size) for word, stride in words))


def _index(word: str, grids: dict[str, torch.Tensor]) -> torch.Tensor:
    for mark, apply in (("/", lambda grid, n: grid // n), ("%", lambda grid, n: grid % n)):
        axis, found, n = word.partition(mark)
        if found:
            return apply(grids[axis], int(n))
    return grids[word]


def _words(name: str, axis: str, steps: Sequence[int]) -> list[tuple[str, int]]:
    """The words of an axis whose index i lies `steps[i]` behind index 0: whole, or split once."""
    count = len(steps)
    if count == 1:
        return []
    inner = steps[1]
    run = next((i for i in range(count) if steps[i] != i * inner), count)
    if run == count:
        return [(axis, inner)]
    outer = steps[run]
    if count % run or any(steps[i] != i // run * outer + i % run * inner for i in range(count)):
        shown = ", ".join(str(step) for step in steps[:10])
        raise Unexplained(f"{name}: along `{axis}`, {count} indices lie at {shown}, …: neither one stride nor a split by one number")
    return [(f"{axis}/{run}", outer), (f"{axis}%{run}", inner)]
