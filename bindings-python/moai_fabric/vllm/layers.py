"""What vLLM says of its layers, read into what the description wants."""

from __future__ import annotations

from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from .describe import Undescribed
from .paging import Group

# Exactly these: what derives from them may keep other things.
KNOWN = (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec)


def numbered(cache_config) -> dict[str, int]:
    """The layers whose caches are transferred, by name, with the numbers that the model gives them.

    Raises `Undescribed` for a kind of cache that is not known here, and for two caches in one layer.
    """
    found: dict[str, int] = {}
    for group in cache_config.transfer_groups:
        for name in group.layer_names:
            spec = _spec(group, name)
            if type(spec) not in KNOWN:
                known = ", ".join(kind.__name__ for kind in KNOWN)
                raise Undescribed(f"{name}: a cache of kind {type(spec).__name__} is not described yet; described are {known}")
            if spec.tokens_per_state != 1:
                raise Undescribed(f"{name}: a state of {spec.tokens_per_state} tokens is not described yet; described is one token")
            number = extract_layer_index(name)
            if number in found.values():
                other = next(other for other, its in found.items() if its == number)
                raise Undescribed(f"{name} and {other}: two caches of layer {number} are not described yet")
            found[name] = number
    return found


def groups(
    cache_config, numbers: dict[str, int], pages_of: dict[str, int], slots_of: dict[str, int]
) -> tuple[Group | None, ...]:
    """The groups that are transferred; `pages_of` and `slots_of` are what the view of each layer has.

    A pipeline stage may have no layer of a group, and then no view that says what its pages are: of such a group nothing is said here.
    Of a window of w tokens the last w - 1 before the token that is computed next are needed: the request's tokens that are moved leave out its last.
    """
    found: list[Group | None] = []
    for at, group in enumerate(cache_config.transfer_groups):
        names = group.layer_names
        if not names:
            found.append(None)
            continue
        spec = _spec(group, names[0])
        slots = {slots_of[name] for name in names}
        window = {getattr(_spec(group, name), "sliding_window", None) if _is_windowed(group, name) else None for name in names}
        if len(slots) != 1 or len(window) != 1:
            raise Undescribed(f"group {at}: its layers have pages of {sorted(slots)} tokens and windows of {sorted(map(str, window))}")
        page = slots.pop()
        if spec.block_size % page or any(pages_of[name] * page != cache_config.num_blocks * spec.block_size for name in names):
            raise Undescribed(
                f"group {at}: {cache_config.num_blocks} blocks of {spec.block_size} tokens, but the view has {pages_of[names[0]]} pages of {page}"
            )
        size = window.pop()
        layers = tuple(sorted(numbers[name] for name in names))
        found.append(Group(str(at), layers, spec.block_size, page, None if size is None else max(1, size - 1)))
    return tuple(found)


def _spec(group, name: str):
    spec = group.kv_cache_spec
    return spec.kv_cache_specs[name] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _is_windowed(group, name: str) -> bool:
    # A full-attention spec may carry a window where one manager keeps everything: nothing is freed then.
    return isinstance(_spec(group, name), SlidingWindowSpec)
