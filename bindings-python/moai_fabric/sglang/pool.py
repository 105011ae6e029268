"""SGLang's memory pool, as what the fabric moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch

from . import probe
from .probe import Part, Unexplained


@dataclass(frozen=True)
class Span:
    """The bytes of one region."""

    address: int
    bytes: int


class Pool:
    """The pool of one rank: its tensors in the order of the regions of its description, and what was found of them.

    Raises `Unexplained` for pools that cannot be described; the message names the class.
    """

    def __init__(self, pool):
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

        self._pool = pool
        kind = type(pool)
        if kind not in (MHATokenToKVPool, MLATokenToKVPool):
            raise Unexplained(
                f"the pool is a {kind.__name__}, which this backend does not describe; it describes MHATokenToKVPool and MLATokenToKVPool "
                "(for a model with sliding windows: --disable-hybrid-swa-memory)"
            )
        if getattr(pool, "is_quantized_kv_cache", False):
            raise Unexplained(f"the pool is quantized by {pool.quant_method.name!r}, whose scales this backend does not describe")
        self.page_size: int = pool.page_size
        slots = pool.size + pool.page_size
        if slots % pool.page_size:
            raise Unexplained(f"the pool has {slots} slots, no whole number of pages of {pool.page_size}")
        self.pages = slots // pool.page_size
        self.layers = tuple(range(pool.start_layer, pool.start_layer + pool.layer_num))
        if kind is MHATokenToKVPool:
            self._by_part = {"key": list(pool.k_buffer), "value": list(pool.v_buffer)}
            shapes = {"key": (pool.head_num, pool.head_dim), "value": (pool.head_num, pool.v_head_dim)}
        else:
            self._by_part = {"latent": list(pool.kv_buffer)}
            shapes = {"latent": (1, pool.kv_buffer[0].shape[-1])}
        self.is_latent = kind is MLATokenToKVPool
        self.parts = self._probed(shapes)
        self._mirrors = None
        if not self.on_host:
            # Where the fabric does not reach the device: pages go through host memory of the same shape.
            self._mirrors = [torch.zeros(t.shape, dtype=t.dtype, pin_memory=True) for t in self.tensors()]

    @property
    def on_host(self) -> bool:
        """Whether the processor reads and writes the pool itself."""
        return self.tensors()[0].device.type == "cpu"

    def tensors(self) -> list[torch.Tensor]:
        """By layer, and within it by component."""
        return [tensor for layer in zip(*self._by_part.values()) for tensor in layer]

    def spans(self) -> list[Span]:
        """What the fabric reads and writes."""
        tensors = self._mirrors or self.tensors()
        return [Span(tensor.data_ptr(), probe.bare(tensor).nbytes) for tensor in tensors]

    def copy_out(self, pages: list[int]) -> None:
        """Brings pages to where the fabric reads them."""
        if self._mirrors is not None:
            self._copy(pages, self.tensors(), self._mirrors)

    def copy_in(self, pages: list[int]) -> None:
        """Brings pages that the fabric has written to the pool."""
        if self._mirrors is not None:
            self._copy(pages, self._mirrors, self.tensors())

    def _copy(self, pages: list[int], sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        for source, target in zip(sources, targets):
            slots = source.shape[0] // self.pages
            for page in pages:
                rows = slice(page * slots, (page + 1) * slots)
                target[rows].copy_(source[rows], non_blocking=True)
        torch.accelerator.synchronize()

    def _probed(self, shapes: dict[str, tuple[int, int]]) -> tuple[Part, ...]:
        found: dict[str, Part] = {}
        for name, (heads, dim) in shapes.items():
            for layer, tensor in zip(self.layers, self._by_part[name]):
                store = partial(self._store, shapes, layer, name)
                part = probe.probe(name, tensor, self.pages, (self.page_size, heads, dim), store)
                if found.setdefault(name, part) != part:
                    raise Unexplained(f"{name}: layer {layer} lies as {part}, layer {self.layers[0]} as {found[name]}")
        return tuple(found.values())

    def _store(self, shapes: dict[str, tuple[int, int]], layer: int, name: str, page: int, rows: torch.Tensor) -> None:
        """Writes rows of one component into a page as a layer does it, and zeros for the other."""
        slots = torch.arange(page * self.page_size, (page + 1) * self.page_size, device=rows.device)
        given = [
            rows if part == name else torch.zeros((self.page_size, *shape), device=rows.device) for part, shape in shapes.items()
        ]
        if len(given) == 1:
            given.append(given[0][..., :0])
        given = [tensor.to(self._pool.dtype) for tensor in given]
        self._pool.set_kv_buffer(SimpleNamespace(layer_id=layer), slots, *given)
