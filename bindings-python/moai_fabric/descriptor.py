"""What one side's cache is, and whether two sides fit."""

from __future__ import annotations

import ctypes
import json
import operator
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int64, c_uint32, c_uint64
from dataclasses import dataclass
from typing import Any, Optional, Union

from . import _native
from ._native import call, json_of, lib, new, text_of, utf8, whole
from ._object import Object
from .errors import ArgumentError, DescriptorError, MemoryRegistrationError, Obstacle, RefusedError

__all__ = ["Agreement", "Cut", "Descriptor", "DescriptorBuilder", "RegionSpec", "check", "layout_of_tensor", "negotiate"]

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RegionSpec:
    """A region that a rank has, by its description."""

    name: str
    bytes: int
    """At least so many."""


class Descriptor:
    """A cache description that was read and checked; the book's chapter "Cache description" has its fields.

    Args:
        description: JSON as text, or as the ``dict`` that ``json.loads`` makes of it.

    Raises:
        DescriptorError: It says what cannot be; ``field`` is the place.
    """

    def __init__(self, description: Union[str, Json]) -> None:
        if isinstance(description, Mapping):
            description = _json(description, "description")
        text = utf8(description, "description", DescriptorError)
        self._object = Object(new(lib.moai_descriptor_from_json, text), lib.moai_descriptor_free)

    @property
    def json(self) -> str:
        """The description as it was read or built."""
        return text_of(lib.moai_descriptor_json, self._object.pointer)

    def to_dict(self) -> dict[str, Any]:
        """The same as a ``dict``."""
        description: dict[str, Any] = json.loads(self.json)
        return description

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text: 32 bytes."""
        digest = ctypes.create_string_buffer(32)
        call(lib.moai_descriptor_digest, self._object.pointer, digest)
        return digest.raw

    @property
    def layers(self) -> int:
        """Layers of the whole model."""
        return self._count(lib.moai_descriptor_layers)

    @property
    def ranks(self) -> int:
        """How many ranks it has."""
        return self._count(lib.moai_descriptor_ranks)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of its groups of layers, in order; without groups it is one without a name."""
        count = self._count(lib.moai_descriptor_groups)
        return tuple(text_of(lib.moai_descriptor_group_name, self._object.pointer, i) for i in range(count))

    def regions(self, rank: int) -> tuple[RegionSpec, ...]:
        """Regions of a rank, in the order in which an engine wants its memory."""
        own, rank = self._object.pointer, whole(rank, "rank")
        count, length = c_uint32(), c_uint64()
        call(lib.moai_descriptor_regions, own, rank, byref(count))
        regions = []
        for i in range(count.value):
            call(lib.moai_descriptor_region_bytes, own, rank, i, byref(length))
            regions.append(RegionSpec(text_of(lib.moai_descriptor_region_name, own, rank, i), length.value))
        return tuple(regions)

    def pages_needed(self, rank: int, tokens: int, group: str = "") -> int:
        """How many pages of a group a rank lists for a request of so many tokens."""
        groups = self.groups
        if group not in groups:
            names = ", ".join(map(repr, groups))
            raise ArgumentError(f"group: there is no {group!r}; the description has {names}", field="group", ours=group, theirs=names)
        pages = c_uint64()
        at = whole(rank, "rank"), groups.index(group), whole(tokens, "tokens")
        call(lib.moai_descriptor_pages_needed, self._object.pointer, *at, byref(pages))
        return pages.value

    def _count(self, function: Any) -> int:
        count = c_uint32()
        call(function, self._object.pointer, byref(count))
        return count.value

    def __repr__(self) -> str:
        return f"<Descriptor of {self.ranks} ranks>"


@dataclass(frozen=True)
class Cut:
    """Keeps indices ``start`` to ``end`` of a dimension, as ``tensor[:, start:end]``; with ``drop`` one index, and the dimension is gone."""

    label: str
    start: int
    end: int
    drop: bool = False


def layout_of_tensor(
    labels: Sequence[str],
    shape: Sequence[int],
    strides: Sequence[int],
    *,
    element_bytes: int,
    offset: int = 0,
    in_bytes: bool = False,
    cuts: Sequence[Cut] = (),
    regions: Sequence[str] = (),
) -> dict[str, Any]:
    """The ``layout`` of a component whose tensor has these dimensions, for :meth:`DescriptorBuilder.component`.

    Args:
        labels: A word of the layout notation for each dimension: ``page``, ``slot``, ``head``, ``dim``, ``dim/8``, ``layer``, ``part``.
        shape: Its extents.
        strides: Its strides in elements, as ``tensor.stride()``, or in bytes with ``in_bytes``.
        element_bytes: Bytes of an element.
        offset: From the start of the region to the first element, in the unit of ``strides``.
        in_bytes: Whether ``strides`` and ``offset`` count bytes, as numpy's.
        cuts: What makes one component of the tensor, in order.
        regions: Axes that have a tensor for each of their indices, as ``["layer"]``.

    Raises:
        DescriptorError: These are no dimensions of a layout; ``field`` names which.
    """
    if not len(labels) == len(shape) == len(strides):
        counts = f"{len(labels)} labels, {len(shape)} extents, {len(strides)} strides"
        raise DescriptorError(f"labels: {counts} are given; expected as many of each", field="labels", ours=counts)
    if isinstance(regions, str):
        raise ArgumentError("regions: text is given; expected a list of words, as ['layer']", field="regions", ours=repr(regions))
    words = [utf8(label, f"labels[{i}]", DescriptorError) for i, label in enumerate(labels)]
    extents = [whole(extent, f"shape[{i}]", 64, DescriptorError) for i, extent in enumerate(shape)]
    steps = [_signed(stride, f"strides[{i}]") for i, stride in enumerate(strides)]
    cut = (_native.Cut * len(cuts))()
    for i, one in enumerate(cuts):
        cut[i].label = utf8(one.label, f"cuts[{i}].label")
        cut[i].start = whole(one.start, f"cuts[{i}].start", 64)
        cut[i].end = whole(one.end, f"cuts[{i}].end", 64)
        cut[i].drop = int(one.drop)
    tensor = _native.Tensor(
        dims=len(words),
        element_bytes=whole(element_bytes, "element_bytes"),
        labels=(c_char_p * len(words))(*words),
        shape=(c_uint64 * len(words))(*extents),
        strides=(c_int64 * len(words))(*steps),
        offset=_signed(offset, "offset"),
        in_bytes=int(in_bytes),
        cut_count=len(cuts),
        cuts=cut,
    )
    names = utf8(" ".join(regions), "regions") if regions else None
    try:
        layout: dict[str, Any] = json_of(lib.moai_tensor_layout, byref(tensor), names)
    except MemoryRegistrationError as error:
        raise DescriptorError(
            error.message,
            status=error.status,
            status_name=error.status_name,
            field=error.field,
            ours=error.ours,
            theirs=error.theirs,
            hint=error.hint,
        ) from None
    return layout


class DescriptorBuilder:
    """Builds a description from parts, as a connector has them.

    >>> builder = DescriptorBuilder(layers=2, page_slots=16)
    >>> layout = layout_of_tensor(["page", "slot", "head", "dim"], [8, 16, 4, 64], [4096, 256, 64, 1], element_bytes=2, regions=["layer"])
    >>> _ = builder.component("key", heads=4, dim=64, pool="kv", format="bf16", layout=layout)
    >>> builder.rank(0, pages=8).build().regions(0)[0]
    RegionSpec(name='kv.0', bytes=65536)

    Every method but :meth:`build` returns the builder. The whole is checked by :meth:`build`, which raises :class:`DescriptorError`.

    Args:
        layers: Layers of the whole model.
        page_slots: Tokens a page, where groups do not say so.
        engine: Engine and version; reported, never compared.
        model: Name of the model; reported, never compared.
        model_digest: Identifies the weights; sides that give different ones are refused.
        tp, pp, cp: Sizes of tensor, pipeline and context parallelism.
        rank_order: The axes from slowest to fastest, as ``"pp cp tp"``.
        cp_unit: ``token``, ``page`` or ``contiguous``; required with ``cp`` above 1.
    """

    def __init__(
        self,
        *,
        layers: int,
        page_slots: Optional[int] = None,
        engine: Optional[str] = None,
        model: Optional[str] = None,
        model_digest: Optional[str] = None,
        tp: int = 1,
        pp: int = 1,
        cp: int = 1,
        rank_order: Optional[str] = None,
        cp_unit: Optional[str] = None,
    ) -> None:
        self._parts: dict[str, Any] = {
            "version": 1,
            "model": _given(name=model, digest=model_digest, layers=layers),
            "parallel": _given(tp=tp, pp=pp, cp=cp, rank_order=rank_order, cp_unit=cp_unit),
            **_given(engine=engine, page_slots=page_slots),
            "components": [],
            "ranks": [],
        }

    def group(self, name: str, **fields: Any) -> DescriptorBuilder:
        """Adds a group of layers: ``layers`` or ``layers_list``, ``page_slots``, ``window``."""
        self._parts.setdefault("groups", []).append({"name": name, **fields})
        return self

    def component(
        self,
        name: str,
        *,
        heads: int,
        dim: int,
        pool: str,
        format: Union[str, Json],
        layout: Union[str, Json],
        **fields: Any,
    ) -> DescriptorBuilder:
        """Adds a component.

        Args:
            name: ``key``, ``value``, ``latent``, …
            heads: Heads of all ranks together.
            dim: Elements a row.
            pool: The set of regions it lies in.
            format: An element (``bf16``), or the description's object with scales.
            layout: Notation, or what :func:`layout_of_tensor` gives.
            fields: Further fields: ``rope``, ``part``, ``group``, ``of``.
        """
        if isinstance(format, str):
            format = {"element": format}
        self._parts["components"].append(
            {"name": name, "heads": heads, "dim": dim, "pool": pool, "format": format, "layout": layout, **fields}
        )
        return self

    def rank(self, rank: int, *, pages: int, **fields: Any) -> DescriptorBuilder:
        """Adds a rank with so many pages. Further fields: ``layers``, ``layers_list``, ``heads``."""
        self._parts["ranks"].append({"rank": rank, "pages": pages, **fields})
        return self

    def build(self) -> Descriptor:
        """Checks what was built; the builder stays as it is, and more may be added."""
        return Descriptor(self._parts)


def _given(**fields: Any) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def _signed(value: object, field: str) -> int:
    """A whole number of 64 bits."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise DescriptorError(f"{field}: {value!r} is of type {kind}; expected a whole number", field=field, ours=repr(value)) from None
    if not -(1 << 63) <= number < 1 << 63:
        raise DescriptorError(f"{field}: {number} does not fit into 64 bits", field=field, ours=str(number))
    return number


@dataclass(frozen=True)
class Agreement:
    """Two sides that fit, and how every row travels."""

    plan: str
    """Who sends what to whom, in which format, and who converts: text for people."""
    digest: bytes
    """32 bytes that are equal on both sides if both mean the same."""
    details: Mapping[str, Any]
    """The same for programs: ``carriages`` (a component's exchange format and who converts) and ``pairs`` (of ranks)."""


def check(producer: Descriptor, consumer: Descriptor) -> tuple[Obstacle, ...]:
    """What keeps two sides from fitting: every obstacle, or none."""
    try:
        _agreement(producer, consumer).free()
    except RefusedError as refused:
        return refused.obstacles
    return ()


def negotiate(producer: Descriptor, consumer: Descriptor) -> Agreement:
    """Whether what one side has can be moved to the other, and how.

    Raises:
        RefusedError: It cannot; ``obstacles`` has every difference with both values.
    """
    agreement = _agreement(producer, consumer)
    digest = ctypes.create_string_buffer(32)
    call(lib.moai_agreement_digest, agreement.pointer, digest)
    plan = text_of(lib.moai_agreement_text, agreement.pointer)
    return Agreement(plan, digest.raw, json_of(lib.moai_agreement_json, agreement.pointer))


def _agreement(producer: Descriptor, consumer: Descriptor) -> Object:
    sides = _pointer(producer, "producer"), _pointer(consumer, "consumer")
    return Object(new(lib.moai_negotiate, *sides), lib.moai_agreement_free)


def _pointer(side: object, field: str) -> int:
    if not isinstance(side, Descriptor):
        kind = type(side).__name__
        raise ArgumentError(f"{field}: an object of type {kind} is given; expected a Descriptor", field=field, ours=kind, theirs="Descriptor")
    return side._object.pointer


def _json(value: object, field: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise DescriptorError(f"{field}: JSON cannot say it: {error}", field=field) from error
