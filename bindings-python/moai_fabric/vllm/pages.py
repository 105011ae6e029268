"""The probe on a layer's real cache: writes through the backend's store operation, reads back, and restores what was there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import probe
from .probe import Part, Unexplained


@dataclass(frozen=True)
class Stored:
    """How a layer keeps its rows."""

    # By component: key and value, or latent.
    parts: dict[str, Part]
    element: str
    page_stride: int
    pages: int
    page_slots: int
    # By component, where the format has a scale beside it.
    scales: dict[str, float] | None

    def like(self) -> tuple:
        """What all layers of a side must have in common."""
        return (tuple(sorted(self.parts.items())), self.element, self.page_stride, self.page_slots, self.scales is None)


# The page that is written to: not the first, so that a backend that ignores slots is seen.
PAGE = 1


class Store:
    """A layer's store operation, on its cache."""

    def __init__(self, name: str, layer, cache: torch.Tensor, dtype: torch.dtype):
        if cache.dim() != 4:
            raise Unexplained(f"{name}: a cache of shape {list(cache.shape)}; expected pages, heads, slots, content")
        if cache.shape[0] <= PAGE:
            raise Unexplained(f"{name}: {cache.shape[0]} pages; probing needs {PAGE + 1}")
        self.name, self.layer, self.cache, self.dtype = name, layer, cache, dtype
        self.impl = layer.impl
        if not hasattr(self.impl, "do_kv_cache_update"):
            backend = type(self.impl).__name__
            raise Unexplained(f"{name}: {backend} has no store operation (do_kv_cache_update), so its layout cannot be probed")
        self.is_latent = hasattr(self.impl, "kv_lora_rank")
        self.slots = cache.shape[2]
        if self.is_latent:
            self.extents = {"latent": (1, self.slots, self.impl.kv_lora_rank + self.impl.qk_rope_head_dim)}
        else:
            heads = self.impl.num_kv_heads
            value = getattr(layer, "head_size_v", None) or self.impl.head_size
            self.extents = {"key": (heads, self.slots, self.impl.head_size), "value": (heads, self.slots, value)}

    def write(self, **values: torch.Tensor) -> None:
        """Stores rows [slot, head, dim] of the components into the page; of those not given, zeros."""
        rows = {}
        for name, (heads, slots, dim) in self.extents.items():
            given = values.get(name)
            rows[name] = torch.zeros(slots, heads, dim, dtype=self.dtype, device=self.cache.device) if given is None else given
        places = torch.arange(PAGE * self.slots, (PAGE + 1) * self.slots, dtype=torch.int64, device=self.cache.device)
        if self.is_latent:
            rank = self.impl.kv_lora_rank
            latent, rope = rows["latent"][:, 0, :rank].contiguous(), rows["latent"][:, :, rank:].contiguous()
            self.impl.do_kv_cache_update(latent, rope, self.cache, places, self.impl.kv_cache_dtype, self.layer._k_scale)
        else:
            self.impl.do_kv_cache_update(self.layer, rows["key"], rows["value"], self.cache, places)

    def read(self) -> torch.Tensor:
        """The page's elements as codes, in the order of its view."""
        page = self.cache[PAGE].contiguous()
        code = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(page.element_size())
        if code is None:
            raise Unexplained(f"{self.name}: elements of {page.element_size()} bytes")
        codes = page.view(code).flatten().cpu().long()
        return codes & ((1 << 8 * page.element_size()) - 1)

    def clear(self) -> None:
        self.cache[PAGE].zero_()

    def byte_of(self) -> torch.Tensor:
        """Byte, from the start of the page, of each element in the order of `read`."""
        shape, strides, size = self.cache.shape[1:], self.cache.stride()[1:], self.cache.element_size()
        at = torch.zeros(shape, dtype=torch.int64)
        for axis, (count, stride) in enumerate(zip(shape, strides)):
            step = torch.arange(count, dtype=torch.int64) * stride * size
            at += step.view([-1 if i == axis else 1 for i in range(len(shape))])
        return at.flatten()


def stored(name: str, layer, cache: torch.Tensor, dtype: torch.dtype, known: list[Stored]) -> Stored:
    """How a layer keeps its rows.

    What another layer was found to do is only checked, with random rows; otherwise every element is followed. `dtype` is that of the
    rows that the model stores. Raises `probe.Unexplained` with the layer's name.
    """
    store = Store(name, layer, cache, dtype)
    held = cache[: PAGE + 1].clone()
    try:
        scales = _scales(store)
        for like in known:
            if _is_same(store, like):
                return Stored(like.parts, like.element, like.page_stride, cache.shape[0], store.slots, scales)
        return _found(store, scales)
    except Unexplained as error:
        backend = type(store.impl).__name__
        raise Unexplained(f"{name} ({backend}, cache {list(cache.shape)} of {cache.dtype}): {error}") from None
    finally:
        cache[: PAGE + 1].copy_(held)


def _scales(store: Store) -> dict[str, float] | None:
    if store.cache.element_size() > 1:
        return None
    if getattr(store.layer, "use_per_head_quant_scales", False):
        raise Unexplained("scales by head are not described yet: use one scale for each layer")
    if store.is_latent:
        return {"latent": float(store.layer._k_scale_float)}
    return {"key": float(store.layer._k_scale_float), "value": float(store.layer._v_scale_float)}


def _found(store: Store, scales: dict[str, float] | None) -> Stored:
    where = store.byte_of()
    parts, elements = {}, set()
    for name, (heads, slots, dim) in store.extents.items():
        count = heads * slots * dim
        index = torch.arange(count).view(heads, slots, dim).transpose(0, 1)
        scale = scales[name] if scales else 1.0

        def written(values: torch.Tensor) -> torch.Tensor:
            store.clear()
            rows = (values * scale).to(store.dtype).contiguous().to(store.cache.device)
            store.write(**{name: rows})
            return store.read()

        ones = written(torch.ones(slots, heads, dim))
        landed = ones != 0
        if int(landed.sum()) != count:
            raise Unexplained(f"{count} elements of `{name}` change {int(landed.sum())} of the page")
        halves = written(torch.full((slots, heads, dim), 1.5))
        elements.add(probe.element(_only(ones[landed], name), _only(halves[landed], name)))
        found = torch.zeros_like(ones)
        for bit in range(max(1, (count - 1).bit_length())):
            found |= (written((index >> bit & 1).float()) != 0).long() << bit
        places = torch.full((count,), -1, dtype=torch.int64)
        places[found[landed]] = where[landed]
        if int((places < 0).sum()):
            raise Unexplained(f"two elements of `{name}` land in one place")
        table = places.view(heads, slots, dim).tolist()
        part = probe.fit(lambda h, s, d: table[h][s][d], (heads, slots, dim))
        _check(part, places.view(heads, slots, dim), name)
        parts[name] = part
    if len(elements) != 1:
        raise Unexplained(f"components of unlike formats: {', '.join(sorted(elements))}")
    stride = store.cache.stride(0) * store.cache.element_size()
    return Stored(parts, elements.pop(), stride, store.cache.shape[0], store.slots, scales)


def _only(codes: torch.Tensor, name: str) -> int:
    values = codes.unique()
    if len(values) != 1:
        raise Unexplained(f"equal elements of `{name}` are stored as {len(values)} unlike codes")
    return int(values[0])


def _check(part: Part, places: torch.Tensor, name: str) -> None:
    """Every element is where the layout says."""
    says = _places(part)
    if not torch.equal(says, places):
        at = (says != places).nonzero()[0].tolist()
        raise Unexplained(
            f"`{name}` has no strides: element (head, slot, dim) {tuple(at)} lies at byte {int(places[tuple(at)])}, not {int(says[tuple(at)])}"
        )


def _places(part: Part) -> torch.Tensor:
    says = torch.full(part.extents, part.offset_bytes, dtype=torch.int64)
    for word, stride in part.words:
        for axis, label in enumerate(probe.AXES):
            if word.rstrip("0123456789").rstrip("/%") != label:
                continue
            index = torch.arange(part.extents[axis])
            if "/" in word:
                index = index // int(word.split("/")[1])
            elif "%" in word:
                index = index % int(word.split("%")[1])
            says += (index * stride).view([-1 if i == axis else 1 for i in range(3)])
    return says


def _is_same(store: Store, like: Stored) -> bool:
    """Whether random rows land where another layer's layout says, and nowhere else."""
    stride = store.cache.stride(0) * store.cache.element_size()
    extents = {name: part.extents for name, part in like.parts.items()}
    if extents != store.extents or stride != like.page_stride:
        return False
    generator = torch.Generator().manual_seed(11)
    where = store.byte_of()
    scales = _scales(store)
    if (scales is None) != (like.scales is None):
        return False
    bits = {name: torch.randint(0, 2, extent, generator=generator) for name, extent in extents.items()}
    rows = {
        name: (bit.transpose(0, 1) * (scales[name] if scales else 1.0)).to(store.dtype).contiguous().to(store.cache.device)
        for name, bit in bits.items()
    }
    store.clear()
    store.write(**rows)
    codes = store.read()
    one = {code for (code, _), name in probe.CODES.items() if name == like.element}
    wanted = torch.zeros_like(codes)
    order = {int(byte): position for position, byte in enumerate(where.tolist())}
    for name, bit in bits.items():
        places = _places(like.parts[name])[bit.bool()].tolist()
        if any(place not in order for place in places):
            return False
        wanted[[order[place] for place in places]] = next(iter(one))
    return torch.equal(codes, wanted)
