"""The description of a server, put together of what each of its ranks has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .probe import Part


class Undescribed(ValueError):
    """The cache of this server cannot be described; the message says why."""


@dataclass(frozen=True)
class Piece:
    """What one rank holds. Layers are the model's own numbers; scales are by component and layer."""

    tp_rank: int
    pp_rank: int
    layers: tuple[int, ...]
    page_size: int
    pages: int
    parts: tuple[Part, ...]
    scales: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Model:
    """What all ranks say alike."""

    name: str
    digest: str | None
    engine: str
    tp: int
    pp: int
    # KV heads of the whole model; 1 for a latent.
    heads: int

    def number(self, tp_rank: int, pp_rank: int) -> int:
        """The rank's number in the description, and its node's."""
        return pp_rank * self.tp + tp_rank


def head_interval(heads: int, tp: int, rank: int) -> tuple[int, int]:
    """The KV heads of a tensor parallel rank: an equal share, or one head that several ranks have."""
    if tp > heads:
        first = rank * heads // tp
        return first, first + 1
    share = heads // tp
    return rank * share, (rank + 1) * share


def description(model: Model, pieces: list[Piece]) -> dict[str, Any]:
    """The document that describes a server of these ranks.

    Raises `Undescribed` where ranks keep their caches unlike each other.
    """
    pieces = sorted(pieces, key=lambda piece: model.number(piece.tp_rank, piece.pp_rank))
    first = pieces[0]
    for piece in pieces[1:]:
        if piece.parts != first.parts:
            raise Undescribed(f"rank {piece.tp_rank} of stage {piece.pp_rank} keeps its cache as {piece.parts}, rank 0 as {first.parts}")
    layers = sorted({layer for piece in pieces for layer in piece.layers})
    scales: dict[str, dict[int, float]] = {}
    for piece in pieces:
        for name, values in piece.scales.items():
            scales.setdefault(name, {}).update(zip(piece.layers, values))
    document: dict[str, Any] = {
        "version": 1,
        "engine": model.engine,
        "model": {"name": model.name, "layers": len(layers)},
        "parallel": {"tp": model.tp, "pp": model.pp, "cp": 1, "rank_order": "pp cp tp"},
        "page_slots": first.page_size,
        "components": [_component(model, part, scales.get(part.name), layers, len(first.parts)) for part in first.parts],
        "ranks": [_rank(model, piece, layers) for piece in pieces],
    }
    if model.digest is not None:
        document["model"]["digest"] = model.digest
    return document


def _component(model: Model, part: Part, scales: dict[int, float] | None, layers: list[int], parts: int) -> dict[str, Any]:
    of: dict[str, Any] = {"element": part.element}
    if part.element.startswith(("e4m3", "e5m2")):
        values = [(scales or {}).get(layer, 1.0) for layer in layers]
        of["scale"] = {"granularity": "tensor", "type": "f32", "values": values}
    regions = "[layer] [part]" if parts > 1 else "[layer]"
    return {
        "name": part.name,
        "heads": model.heads,
        "dim": part.dim,
        "pool": "kv",
        "format": of,
        "layout": part.layout(regions),
    }


def _rank(model: Model, piece: Piece, layers: list[int]) -> dict[str, Any]:
    heads = head_interval(model.heads, model.tp, piece.tp_rank)
    if heads[1] - heads[0] != piece.parts[0].heads:
        raise Undescribed(
            f"rank {piece.tp_rank} holds {piece.parts[0].heads} heads; {model.heads} over tensor parallel {model.tp} makes {heads[1] - heads[0]}"
        )
    return {
        "rank": model.number(piece.tp_rank, piece.pp_rank),
        "layers_list": [layers.index(layer) for layer in piece.layers],
        "heads": list(heads),
        "pages": piece.pages,
    }
