"""Finds where a backend really puts the elements of a page.

The name of a layout, and even the strides of the view that a connector is given, are claims: vLLM's CPU backend keeps keys transposed
inside a page, ROCm's packs them by 16 bytes, and both hand out the same logical view. So patterns are written through the backend's own
store operation into a page that nobody uses yet, and read back: one pass for each bit of an element's index says where it landed. From
that follows a layout in the fabric's notation, or a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Sequence

AXES = ("head", "slot", "dim")


class Unexplained(ValueError):
    """What a backend does with a page cannot be described; the message says what was seen."""


@dataclass(frozen=True)
class Part:
    """Where the rows of one component lie within a page."""

    # Heads, slots and elements of a row.
    extents: tuple[int, int, int]
    offset_bytes: int
    # Words of the notation and their strides in bytes, the outermost first.
    words: tuple[tuple[str, int], ...] = field(default=())

    def layout(self, page_stride: int) -> dict:
        """For a description: a region for each layer, and pages in it at that stride."""
        words = [("page", page_stride), *self.words]
        return {
            "text": " ".join(["[layer]", *(word for word, _ in words)]),
            "offset_bytes": self.offset_bytes,
            "strides_bytes": dict(words),
        }

    def at(self, head: int, slot: int, dim: int) -> int:
        """Byte of an element within the page."""
        return self.offset_bytes + sum(stride * _index(word, (head, slot, dim)) for word, stride in self.words)


def _index(word: str, at: Sequence[int]) -> int:
    for axis, index in zip(AXES, at):
        if word == axis:
            return index
        if word.startswith(axis + "/"):
            return index // int(word[len(axis) + 1 :])
        if word.startswith(axis + "%"):
            return index % int(word[len(axis) + 1 :])
    raise ValueError(f"no axis: {word}")


def axis_words(axis: str, steps: Sequence[int]) -> list[tuple[str, int]]:
    """The words of an axis whose index i lies `steps[i]` bytes from index 0: whole, or split once.

    Raises `Unexplained` for anything else.
    """
    count = len(steps)
    if count == 1:
        return []
    inner = steps[1]
    run = next((i for i in range(count) if steps[i] != i * inner), count)
    if run == count:
        return [(axis, inner)]
    outer = steps[run]
    if count % run or any(steps[i] != i // run * outer + i % run * inner for i in range(count)):
        raise Unexplained(
            f"along `{axis}`, {count} indices lie at bytes {_some(steps)}: neither one stride nor a split by one number"
        )
    return [(f"{axis}/{run}", outer), (f"{axis}%{run}", inner)]


def _some(steps: Sequence[int]) -> str:
    shown = ", ".join(str(step) for step in steps[:10])
    return shown + (", …" if len(steps) > 10 else "")


def fit(at: Callable[[int, int, int], int], extents: tuple[int, int, int]) -> Part:
    """The layout of a component whose element (head, slot, dim) lies at byte `at(head, slot, dim)` of its page.

    Checks every axis by itself; whether the axes are independent is for `check`, which looks at every element.
    Raises `Unexplained`.
    """
    base = at(0, 0, 0)
    words = []
    for number, axis in enumerate(AXES):
        where = [0, 0, 0]
        steps = []
        for i in range(extents[number]):
            where[number] = i
            steps.append(at(*where) - base)
        if any(step < 0 for step in steps):
            raise Unexplained(f"along `{axis}`, indices lie at bytes {_some(steps)}: not ascending")
        words += axis_words(axis, steps)
    words.sort(key=lambda word: -word[1])
    return Part(extents, base, tuple(words))


# Codes of 1.0 and 1.5, which tell the formats of a width apart.
CODES = {
    (0x3F800000, 0x3FC00000): "f32",
    (0x3F80, 0x3FC0): "bf16",
    (0x3C00, 0x3E00): "f16",
    (0x38, 0x3C): "e4m3fn",
    (0x40, 0x44): "e4m3fnuz",
    (0x3C, 0x3E): "e5m2",
    (0x40, 0x42): "e5m2fnuz",
}


def element(one: int, one_and_a_half: int) -> str:
    """The exact format that has these codes for 1.0 and 1.5.

    Raises `Unexplained`.
    """
    name = CODES.get((one, one_and_a_half))
    if name is None:
        raise Unexplained(f"1.0 is stored as {one:#x} and 1.5 as {one_and_a_half:#x}, which no known format does")
    return name
