"""The bytes that are moved: the pool itself where the fabric reaches it, or a mirror of it in host memory.

On the CPU nothing is between the pool and the fabric, unless layers share bytes, as those of hybrid groups do. Such a pool, and one on a device, goes through
mirrors in host memory, one for each layer: pages are copied out before they are offered, and in after they are pulled; of a device on a stream of its own,
ordered by events behind what the model runs. Streams follow torch's interface and are exercised on the CPU, where they do nothing; that
part is untested on such hardware.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """The bytes of one layer's cache."""

    address: int
    bytes: int


class Fence:
    """What was launched on a device up to now, or nothing on the CPU."""

    def __init__(self, stream=None):
        self._event = None
        if stream is not None:
            self._event = torch.Event(device=stream.device)
            self._event.record(stream)

    def passed(self) -> bool:
        return self._event is None or self._event.query()


class Memory:
    """The caches of a worker's layers, in the order in which they are described."""

    def __init__(self, caches: list[torch.Tensor], staging: str):
        self._caches = caches
        self._device = caches[0].device
        on_host = self._device.type == "cpu"
        shared = overlap([_span(cache) for cache in caches])
        if staging == "never" and (shared or not on_host):
            why = "layers share its bytes, and a byte of the fabric belongs to one region" if on_host else f"it is on {self._device}"
            raise ValueError(f"kv_connector_extra_config.staging: 'never', but the pool cannot be registered as it is: {why}; leave it 'auto'")
        self._stream = None if on_host else torch.Stream(device=self._device)
        self._mirrors = None
        if staging == "always" or shared or not on_host:
            self._mirrors = [self._mirror(cache) for cache in caches]

    def _mirror(self, cache: torch.Tensor) -> torch.Tensor:
        mirror = torch.empty_strided(
            cache.shape, cache.stride(), dtype=cache.dtype, device="cpu", pin_memory=self._device.type != "cpu"
        )
        # The whole of it, so that no page is backed by memory only when a peer reads it.
        mirror.untyped_storage().fill_(0)
        return mirror

    @property
    def is_staged(self) -> bool:
        return self._mirrors is not None

    def spans(self) -> list[Span]:
        """What the fabric reads and writes, by layer."""
        return [_span(tensor) for tensor in self._mirrors or self._caches]

    def fence(self) -> Fence:
        """Behind all that the model has launched."""
        return Fence(None if self._stream is None else torch.accelerator.current_stream(self._device))

    def copy_out(self, pages_of: list[list[int]]) -> Fence:
        """Brings pages, given by layer, to where the fabric reads them; they are there once the fence is passed."""
        return self._copy(pages_of, self._caches, self._mirrors)

    def copy_in(self, pages_of: list[list[int]]) -> Fence:
        """Brings pages that the fabric has written to the pool."""
        return self._copy(pages_of, self._mirrors, self._caches)

    def _copy(self, pages_of: list[list[int]], sources, targets) -> Fence:
        if self._mirrors is None:
            return Fence()
        with contextlib.ExitStack() as on:
            if self._stream is not None:
                self._stream.wait_stream(torch.accelerator.current_stream(self._device))
                on.enter_context(self._stream)
            for pages, source, target in zip(pages_of, sources, targets):
                for start, end in runs(pages):
                    target[start:end].copy_(source[start:end], non_blocking=True)
        return Fence(self._stream)


def _span(tensor: torch.Tensor) -> Span:
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride()))
    return Span(tensor.data_ptr(), (last + 1) * tensor.element_size())


def overlap(spans: list[Span]) -> bool:
    """Whether two layers have bytes in common, as those of hybrid groups have, which take turns with blocks, and interleaved ones."""
    ordered = sorted(spans, key=lambda span: span.address)
    return any(first.address + first.bytes > second.address for first, second in zip(ordered, ordered[1:]))


def runs(pages: list[int]) -> list[tuple[int, int]]:
    """Pages as half-open intervals, in the order given."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and found[-1][1] == page:
            found[-1] = (found[-1][0], page + 1)
        else:
            found.append((page, page + 1))
    return found
