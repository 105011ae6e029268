"""Two sides that are unlike, and what each holds, by numpy: slow, and too simple to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import moai_fabric as moai

LAYERS, HEADS, DIM = 2, 4, 64

PREFILL: dict[str, Any] = {
    "version": 1,
    "model": {"layers": LAYERS},
    "parallel": {},
    "page_slots": 16,
    "components": [
        {"name": "key", "heads": HEADS, "dim": DIM, "pool": "kv", "format": {"element": "bf16"}, "layout": "[layer] part page slot head dim"},
        {"name": "value", "heads": HEADS, "dim": DIM, "pool": "kv", "format": {"element": "bf16"}, "layout": "[layer] part page slot head dim"},
    ],
    "ranks": [{"rank": 0, "pages": 12}],
}
"""Pages of 16 in bf16; in them slots, then heads. Keys before values."""

DECODE: dict[str, Any] = {
    "version": 1,
    "model": {"layers": LAYERS},
    "parallel": {},
    "page_slots": 32,
    "components": [
        {"name": "key", "heads": HEADS, "dim": DIM, "pool": "kv", "format": {"element": "f32"}, "layout": "[layer] page part head slot dim"},
        {"name": "value", "heads": HEADS, "dim": DIM, "pool": "kv", "format": {"element": "f32"}, "layout": "[layer] page part head slot dim"},
    ],
    "ranks": [{"rank": 0, "pages": 8}],
}
"""Pages of 32 in f32; in them keys, then values; in these heads, then slots."""

Cache = NDArray[np.generic]


def memory_for(side: moai.Descriptor, kind: str = "host", rank: int = 0) -> list[moai.Memory]:
    """Zeroed memory of one rank."""
    return [moai.Memory.allocate(region.bytes, kind) for region in side.regions(rank)]


def fill(memory: list[moai.Memory], seed: int) -> None:
    """Seeded numbers in bf16, of any exponent of middling size."""
    rng = np.random.default_rng(seed)
    for one in memory:
        numbers = rng.standard_normal(one.length // 2).astype(np.float32)
        one.view()[:] = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def prefill_rows(memory: list[moai.Memory], pages: list[int], tokens: int) -> NDArray[np.float32]:
    """What a request's rows are at the producer: layer, part, token, head, dim."""
    layers = []
    for one in memory:
        cache = np.frombuffer(one.view(), np.uint16).reshape(2, 12, 16, HEADS, DIM)
        rows = cache[:, pages].reshape(2, -1, HEADS, DIM)[:, :tokens]
        layers.append((rows.astype(np.uint32) << 16).view(np.float32))
    return np.stack(layers)


def decode_rows(memory: list[moai.Memory], pages: list[int], tokens: int) -> NDArray[np.float32]:
    """What a request's rows are at the consumer."""
    layers = []
    for one in memory:
        cache = np.frombuffer(one.view(), np.float32).reshape(8, 2, HEADS, 32, DIM)
        # page, part, head, slot, dim → part, page, slot, head, dim
        rows = cache[pages].transpose(1, 0, 3, 2, 4).reshape(2, -1, HEADS, DIM)
        layers.append(rows[:, :tokens])
    return np.stack(layers)


def untouched(memory: list[moai.Memory], pages: list[int]) -> bool:
    """Whether all pages of the consumer but these are as they were made: zero."""
    others = [page for page in range(8) if page not in pages]
    caches = [np.frombuffer(one.view(), np.uint8).reshape(8, -1) for one in memory]
    return not any(cache[others].any() for cache in caches)
