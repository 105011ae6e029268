"""The description of an engine, put together of what each of its workers has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .paging import Group
from .probe import Part


class Undescribed(ValueError):
    """The cache of this engine cannot be described; the message says which layer and why."""


@dataclass(frozen=True)
class Piece:
    """What one worker holds. Layers are the model's own numbers."""

    rank: int
    layers: tuple[int, ...]
    # The interval of KV heads, by component.
    heads: dict[str, tuple[int, int]]
    pages: int
    parts: dict[str, Part]
    element: str
    page_stride: int
    # By component and layer.
    scales: dict[str, dict[int, float]]
    # None for a group of which this worker has no layer.
    groups: tuple[Group | None, ...]


@dataclass(frozen=True)
class Model:
    """What all workers say alike."""

    name: str
    digest: str | None
    engine: str
    tp: int
    pp: int
    # KV heads of the whole model, by component.
    heads: dict[str, int]


def head_interval(heads: int, tp: int, rank: int) -> tuple[int, int]:
    """The KV heads of a tensor parallel rank: an equal share, or one head that several ranks have."""
    if tp > heads:
        first = rank * heads // tp
        return first, first + 1
    share = heads // tp
    return rank * share, (rank + 1) * share


def description(model: Model, pieces: list[Piece]) -> dict[str, Any]:
    """The document that describes an engine of these workers.

    Raises `Undescribed` where workers keep their caches unlike each other.
    """
    pieces = sorted(pieces, key=lambda piece: piece.rank)
    first = pieces[0]
    if [piece.rank for piece in pieces] != list(range(model.tp * model.pp)):
        raise Undescribed(f"workers {[piece.rank for piece in pieces]}; tp {model.tp} × pp {model.pp} makes {model.tp * model.pp}")
    for piece in pieces[1:]:
        for what in ("parts", "element", "page_stride"):
            if getattr(piece, what) != getattr(first, what):
                raise Undescribed(
                    f"{what}: rank 0 has {getattr(first, what)}, rank {piece.rank} has {getattr(piece, what)}: "
                    "workers of one engine must keep their caches alike"
                )
    numbers = {layer: number for number, layer in enumerate(sorted({layer for piece in pieces for layer in piece.layers}))}
    document: dict[str, Any] = {
        "version": 1,
        "engine": model.engine,
        "model": {"name": model.name, "layers": len(numbers)},
        "parallel": {"tp": model.tp, "pp": model.pp, "cp": 1, "rank_order": "pp cp tp"},
        "components": [],
        "ranks": [],
    }
    if model.digest:
        document["model"]["digest"] = model.digest
    groups = merged(pieces)
    if len(groups) == 1 and groups[0].window is None:
        document["page_slots"] = groups[0].page_slots
    else:
        document["groups"] = [
            {
                "name": group.name,
                "layers_list": sorted(numbers[layer] for layer in group.layers),
                "page_slots": group.page_slots,
                **({} if group.window is None else {"window": group.window}),
            }
            for group in groups
        ]
    for name, part in first.parts.items():
        of: dict[str, Any] = {"element": first.element}
        scales = {layer: scale for piece in pieces for layer, scale in piece.scales.get(name, {}).items()}
        if scales:
            of["scale"] = {"granularity": "tensor", "values": [scales[layer] for layer in sorted(numbers)]}
        document["components"].append(
            {
                "name": name,
                "heads": model.heads[name],
                "dim": part.extents[2],
                "pool": "kv",
                "format": of,
                "layout": part.layout(first.page_stride),
            }
        )
    for piece in pieces:
        document["ranks"].append(
            {
                "rank": piece.rank,
                "layers_list": [numbers[layer] for layer in sorted(piece.layers)],
                "heads": list(next(iter(piece.heads.values()))),
                "pages": piece.pages,
            }
        )
    return document


def merged(pieces: list[Piece]) -> list[Group]:
    """The groups of all workers: a group's layers are spread over pipeline stages, and not every stage has some of each."""
    first = pieces[0]
    found: list[tuple[int, Group] | None] = [None] * len(first.groups)
    for piece in pieces:
        if len(piece.groups) != len(found):
            raise Undescribed(f"groups: rank {first.rank} has {len(found)}, rank {piece.rank} has {len(piece.groups)}")
        for at, group in enumerate(piece.groups):
            if group is None:
                continue
            rank, known = found[at] or (piece.rank, group)
            if replace(group, layers=()) != replace(known, layers=()):
                raise Undescribed(f"group {at}: rank {rank} has {asdict(known)}, rank {piece.rank} has {asdict(group)}")
            found[at] = rank, replace(known, layers=tuple(sorted({*known.layers, *group.layers})))
    empty = [at for at, group in enumerate(found) if group is None]
    if empty:
        raise Undescribed(f"groups {empty}: no worker has a layer of them")
    groups = [group for _, group in filter(None, found)]
    if len({group.page_slots for group in groups}) > 1:
        slots = ", ".join(f"{group.name}: {group.page_slots}" for group in groups)
        raise Undescribed(f"groups with pages of unlike sizes ({slots}): one description has one page size")
    return groups


def check_offers(pieces: list[Piece]) -> None:
    """Raises `Undescribed` for workers that cannot offer: a handle is of the page lists of all groups, which every worker must have alike,
    and none lists pages of a group of which it has no layer.
    """
    for piece in sorted(pieces, key=lambda piece: piece.rank):
        lacking = [at for at, group in enumerate(piece.groups) if group is None]
        if lacking:
            raise Undescribed(
                f"pipeline_parallel_size: the stage of rank {piece.rank} has no layer of cache groups {lacking}, "
                "so its requests cannot be offered: on a prefill engine use pipeline_parallel_size 1, "
                "or --disable-hybrid-kv-cache-manager, which makes one group of all layers"
            )
