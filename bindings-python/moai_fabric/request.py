"""What of a cache is to be moved, as one side says it."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_uint32
from dataclasses import dataclass
from typing import Any, Optional, Union

from . import _native
from ._native import whole
from .errors import RequestError

__all__ = ["Pages", "Request"]

ByGroup = Union[Sequence[int], Mapping[str, Sequence[int]]]
Pages = Union[ByGroup, Mapping[int, ByGroup]]
"""Pages of a request: a list for all ranks of the node, a list by group of layers, or either of these by rank."""

_DIGESTS = {"off": 1, "sample": 2, "wire": 3, "full": 4}


@dataclass(frozen=True)
class Request:
    """One request on one side.

    ``pages`` is the block table as the engine has it: one list for all ranks of this node (``[5, 0, 7]``), a list for each
    group of layers (``{"full": [5, 0], "window": [1]}``), or either of these for each rank (``{0: [5], 1: [6]}``). A list covers
    all tokens of the request that a rank holds, those that are ``held`` included.
    """

    tokens: int
    """Tokens of the request."""
    pages: Pages
    """Where they are, or are to be."""
    held: int = 0
    """Of a pull or grant: so many first tokens are there already, and are not moved."""
    layers: Optional[range] = None
    """Global layers that are moved, an interval; ``None`` is all."""
    digest: str = "wire"
    """How much is compared: ``off``, ``sample``, ``wire`` (a sample of what is mapped) or ``full``; the same on both sides."""


def lower(request: Request, ranks: Sequence[int], groups: Sequence[str]) -> _native.Request:
    """A request as the library takes it, for a node with these ranks of a side with these groups."""
    if not isinstance(request, Request):
        kind = type(request).__name__
        raise RequestError(f"request: an object of type {kind} is given; expected a Request", field="request", ours=kind, theirs="Request")
    if request.digest not in _DIGESTS:
        names = ", ".join(_DIGESTS)
        raise RequestError(
            f"request.digest: {request.digest!r} is none of {names}", field="request.digest", ours=repr(request.digest), theirs=names
        )
    start, end = _layers(request.layers)
    given = list(_lists(request.pages, ranks, groups))
    lists = (_native.Pages * len(given))()
    for one, (rank, count, group, pages) in zip(lists, given):
        one.first_rank, one.rank_count, one.group, one.page_count = rank, count, group, len(pages)
        if pages:
            one.pages = ctypes.cast((c_uint32 * len(pages)).from_buffer(pages), POINTER(c_uint32))
    lowered = _native.Request(
        tokens=whole(request.tokens, "request.tokens", wrong=RequestError),
        held=whole(request.held, "request.held", wrong=RequestError),
        layer_start=start,
        layer_end=end,
        digest=_DIGESTS[request.digest],
        list_count=len(given),
        lists=lists,
    )
    lowered.keep = given  # what the lists point to
    return lowered


def _layers(layers: Optional[range]) -> tuple[int, int]:
    if layers is None:
        return 0, 0
    if not isinstance(layers, range) or layers.step != 1 or len(layers) == 0 or layers.start < 0:
        raise RequestError(
            f"request.layers: {layers!r} is no interval of layers; expected a range, as range(0, 8)",
            field="request.layers",
            ours=repr(layers),
            theirs="a range",
        )
    return layers.start, whole(layers.stop, "request.layers", wrong=RequestError)


def _lists(pages: Pages, ranks: Sequence[int], groups: Sequence[str]) -> Iterator[tuple[int, int, int, array[int]]]:
    """First rank, count of ranks, group and pages of each list."""
    if isinstance(pages, Mapping) and pages and all(isinstance(key, int) for key in pages):
        for rank, by_group in pages.items():
            at = f"request.pages[{rank}]"
            for group, numbers in _by_group(by_group, groups, at):
                yield whole(rank, at, wrong=RequestError), 1, group, numbers
        return
    for group, numbers in _by_group(pages, groups, "request.pages"):
        for first, count in _runs(ranks):
            yield first, count, group, numbers


def _by_group(pages: Any, groups: Sequence[str], at: str) -> Iterator[tuple[int, array[int]]]:
    if not isinstance(pages, Mapping):
        if len(groups) > 1:
            names = ", ".join(map(repr, groups))
            raise RequestError(
                f"{at}: one list is given, but the description has groups {names}: give a list for each, by name",
                field=at,
                ours="one list",
                theirs=names,
            )
        yield 0, _numbers(pages, at)
        return
    for name, numbers in pages.items():
        if name not in groups:
            names = ", ".join(map(repr, groups))
            raise RequestError(f"{at}: there is no group {name!r}; the description has {names}", field=at, ours=repr(name), theirs=names)
        yield list(groups).index(name), _numbers(numbers, f"{at}[{name!r}]")


def _numbers(pages: Any, at: str) -> array[int]:
    try:
        if isinstance(pages, (str, bytes)):
            raise TypeError("text is no list of pages")
        return array("I", pages)
    except (TypeError, OverflowError, ValueError) as error:
        ours = repr(pages) if len(repr(pages)) < 100 else repr(pages)[:97] + "..."
        raise RequestError(f"{at}: {ours} is no list of page numbers: {error}", field=at, ours=ours, theirs="page numbers") from None


def _runs(ranks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranks as runs of consecutive ones: first and count."""
    start = 0
    for i in range(1, len(ranks) + 1):
        if i == len(ranks) or ranks[i] != ranks[i - 1] + 1:
            yield ranks[start], i - start
            start = i
