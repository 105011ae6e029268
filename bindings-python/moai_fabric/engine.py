"""One process of an engine."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from ctypes import byref, c_char_p, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Optional, TypeVar, Union

from . import _events, _native
from ._native import call, json_of, lib, nanoseconds, new, text_of, utf8, whole
from ._object import check_process
from ._queue import Pump
from .config import Config, Setting
from .descriptor import Descriptor
from .errors import ArgumentError, DescriptorError, MemoryRegistrationError
from .events import Ended, Event, Fenced, Invited, LayerPlaced, Quarantined, Released, Returned
from .memory import Memory, _Region
from .request import Request, lower
from .transfer import Grant, Offer, Transfer

__all__ = ["Engine", "Node"]

_Ours = TypeVar("_Ours", Transfer, Offer, Grant)


@dataclass(frozen=True)
class Node:
    """One process of another engine."""

    number: int
    """Its number within the engine."""
    ranks: tuple[int, ...]
    """Ranks that it holds."""
    addresses: tuple[str, ...]
    """Where it listens: :attr:`Engine.addresses` there."""


class Engine:
    """One process of an engine: it has its ranks' memory, listens, keeps links to other engines, and moves any number of requests.

    It works in a thread of the library, so that its peers hear of it however busy the program is. Any thread may use it. As a
    context manager it is closed at the end of the block; otherwise by :meth:`close`, with the object, or when the interpreter exits. It
    cannot be used in the child of a fork (:class:`ForkError`): start engines after forking, or spawn.

    Args:
        name: 1 to 64 letters, digits, ``.``, ``_`` and ``-``; the same in all processes of the engine.
        descriptor: The cache of the whole engine.
        memory: Memory of this process's ranks: of each rank in ``ranks`` by number, or a list if there is one rank; each in the order
            of :meth:`Descriptor.regions`. It is kept until the engine is closed.
        config: Settings, or a mapping of some; ``None`` takes the defaults (the environment is not read: give ``Config.from_env()``).
        node: Number of this process in the engine.
        ranks: Ranks that it holds.
        produces, consumes: Whether it offers, and whether it pulls.
        epoch: Life of the engine, the same in all its processes and drawn at random when they start; ``None`` draws one, which is
            right for engines of one process.
        key: 32 secret bytes that seal handles, the same in all its processes; ``None`` draws them, likewise.
        counts_reuse: Whether :meth:`reuse` is called before a page is written for something else.
        heartbeat: Seconds between signs of life.
        loss: A peer that is silent for so many seconds is lost.

    Raises:
        DescriptorError, MemoryRegistrationError: The memory is not what the description says.
        ConfigError: Settings contradict each other.
        PlatformError: It cannot listen.
    """

    def __init__(
        self,
        name: str,
        descriptor: Union[Descriptor, Mapping[str, Any], str],
        memory: Union[Sequence[Memory], Mapping[int, Sequence[Memory]]],
        config: Union[Config, Mapping[str, Setting], None] = None,
        *,
        node: int = 0,
        ranks: Sequence[int] = (0,),
        produces: bool = True,
        consumes: bool = True,
        epoch: Optional[int] = None,
        key: Optional[bytes] = None,
        counts_reuse: bool = False,
        heartbeat: float = 1.0,
        loss: float = 3.0,
    ) -> None:
        if not isinstance(descriptor, Descriptor):
            descriptor = Descriptor(descriptor)
        if not isinstance(config, Config):
            config = Config(config)
        self._ranks = tuple(whole(rank, f"ranks[{i}]") for i, rank in enumerate(ranks))
        self._groups = descriptor.groups
        self._name = name
        self._process = os.getpid()
        regions = [one._living() for one in _in_order(memory, self._ranks, descriptor)]
        options = _native.EngineOptions(
            name=utf8(name, "name"),
            node=whole(node, "node"),
            produces=int(bool(produces)),
            consumes=int(bool(consumes)),
            rank_count=len(self._ranks),
            ranks=(c_uint32 * len(self._ranks))(*self._ranks),
            epoch=0 if epoch is None else _epoch(epoch),
            key=None if key is None else _key(key),
            regions=(c_void_p * len(regions))(*(region.object.pointer for region in regions)),
            region_count=len(regions),
            counts_reuse=int(bool(counts_reuse)),
            heartbeat_ns=nanoseconds(heartbeat, "heartbeat"),
            loss_ns=nanoseconds(loss, "loss"),
        )
        pointer = new(lib.moai_engine_new, config._object.pointer, descriptor._object.pointer, byref(options))
        # It has the regions: they, and what they were made of, stay until it is freed.
        self._finalizer = weakref.finalize(self, _end, pointer, regions, self._process)
        self._pointer = pointer
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._missed = 0
        self._transfers: dict[int, Transfer] = {}
        self._offers: dict[int, Offer] = {}
        self._grants: dict[int, Grant] = {}
        self._next = 1
        fd = c_int32()
        call(lib.moai_engine_fd, pointer, byref(fd))
        # The pump does not have the engine, or neither would ever be collected.
        ours = weakref.WeakMethod(self._drain)
        self._pump = Pump(fd.value, lambda: _if_there(ours), f"engine {name!r}")
        self._addresses = self._read_addresses()

    # ------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        """Name of the engine."""
        return self._name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, in every way in which it does, as ``tcp:127.0.0.1:4000``; for :class:`Node` elsewhere."""
        return self._addresses

    @property
    def epoch(self) -> int:
        """Its life."""
        epoch = c_uint64()
        call(lib.moai_engine_epoch, self._living(), byref(epoch))
        return epoch.value

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is over."""
        return self._pump.closed

    def fileno(self) -> int:
        """A descriptor for ``select`` and ``asyncio``: readable while events wait, for :meth:`poll`. Do not read from it or close it."""
        fd = c_int32()
        call(lib.moai_engine_fd, self._living(), byref(fd))
        return fd.value

    def stats(self) -> dict[str, int]:
        """What its node has counted; also ``links`` that are ready, and ``entries`` of its tables."""
        counted: dict[str, int] = json_of(lib.moai_engine_stats, self._living())
        return counted

    def metrics(self) -> str:
        """Everything counted, in the text format that Prometheus reads."""
        return text_of(lib.moai_engine_metrics, self._living())

    def ready(self) -> tuple[bool, str]:
        """Whether at least one compatible peer is linked, and the same in words."""
        ready = c_uint32()
        why = text_of(lib.moai_engine_ready, self._living(), byref(ready))
        return bool(ready.value), why

    # ----------------------------------------------------------------- peers

    def know(self, name: str, nodes: Iterable[Node]) -> None:
        """Says which nodes an engine has. Links to all of them are kept up from now on."""
        given = list(nodes)
        lowered = (_native.Node * len(given))()
        for i, node in enumerate(given):
            if not isinstance(node, Node):
                kind = type(node).__name__
                raise ArgumentError(f"nodes[{i}]: an object of type {kind} is given; expected a Node", field=f"nodes[{i}]", ours=kind)
            at = f"nodes[{i}]"
            ranks = [whole(rank, f"{at}.ranks[{j}]") for j, rank in enumerate(node.ranks)]
            addresses = [utf8(address, f"{at}.addresses[{j}]") for j, address in enumerate(node.addresses)]
            one = _native.Node(
                number=whole(node.number, f"{at}.number"),
                rank_count=len(ranks),
                ranks=(c_uint32 * len(ranks))(*ranks),
                addresses=(c_char_p * len(addresses))(*addresses),
                address_count=len(addresses),
            )
            lowered[i] = one
        call(lib.moai_engine_know, self._living(), utf8(name, "name"), lowered, len(given))

    def follow(self, names: Sequence[str]) -> None:
        """Finds the nodes of some engines in the directory of the settings (``MOAI_DIRECTORY``), and keeps links to them."""
        if isinstance(names, str):
            raise ArgumentError("names: text is given; expected a list of names", field="names", ours=repr(names))
        encoded = [utf8(name, f"names[{i}]") for i, name in enumerate(names)]
        call(lib.moai_engine_follow, self._living(), (c_char_p * len(encoded))(*encoded), len(encoded))

    def announce(self) -> None:
        """Announces this process in that directory until it is closed."""
        call(lib.moai_engine_announce, self._living())

    # -------------------------------------------------------------- requests

    def offer(
        self,
        request: Request,
        *,
        lease: float,
        number: Optional[int] = None,
        bound_to: Optional[str] = None,
        progressive: bool = False,
        name: Optional[str] = None,
        trace: Optional[str] = None,
    ) -> Offer:
        """Offers a request's pages to whoever has the handle.

        Args:
            request: Tokens, and pages of this process's ranks.
            lease: How many seconds the pages are kept without a transfer.
            number: Never used again in this life of the engine, the same in all its processes; ``None`` counts up, which is right for
                engines of one process.
            bound_to: The only engine that may pull them.
            progressive: Whether layers become ready one by one, by :meth:`Offer.layer_ready`; otherwise all is written already.
            name: What the request is called in reports.
            trace: A W3C ``traceparent`` that consumers are told.

        Raises:
            RequestError: It does not fit this engine's cache.
        """
        living = self._living()
        lowered = lower(request, self._ranks, self._groups)
        with self._pump.lock:
            number = self._number(number)
            given = _native.Offer(
                number=number,
                request=_pointer(lowered),
                lease_ns=nanoseconds(lease, "lease"),
                bound_to=_or_none(bound_to, "bound_to"),
                name=_or_none(name, "name"),
                trace=_or_none(trace, "trace"),
                progressive=int(bool(progressive)),
            )
            handle = text_of(lib.moai_engine_offer, living, byref(given))
            offer = self._offers[number] = Offer(self, number, handle)
            return offer

    def pull(
        self,
        handle: str,
        request: Request,
        *,
        deadline: Optional[float] = None,
        by_layer: bool = False,
        map: bool = True,
        name: Optional[str] = None,
    ) -> Transfer:
        """Begins to pull an offer into this engine's pages. It has one outcome, by the deadline.

        Args:
            handle: Of the offer.
            request: Tokens, those that are held already, and pages of this process's ranks. They are the transfer's until it has ended,
                and until :class:`Fenced` if its outcome is not ``fenced``.
            deadline: Seconds from now to the outcome, at most; ``None`` is the configuration's.
            by_layer: Whether layers are told of one by one, for :meth:`Transfer.wait_layer`.
            map: Whether pages may be read where the producer has them.
            name: What the request is called in reports.

        Raises:
            HandleError: It cannot begin.
            RequestError: The request does not fit this engine's cache.
        """
        living = self._living()
        lowered = lower(request, self._ranks, self._groups)
        given = _native.Pull(
            handle=utf8(handle, "handle"),
            request=_pointer(lowered),
            deadline_ns=0 if deadline is None else _positive(deadline, "deadline"),
            name=_or_none(name, "name"),
            by_layer=int(bool(by_layer)),
            no_map=int(not map),
        )
        number = c_uint64()
        # With the lock, so that nobody is told of its end before it is known here.
        with self._pump.lock:
            call(lib.moai_engine_pull, living, byref(given), byref(number))
            transfer = self._transfers[number.value] = Transfer(self, number.value)
            return transfer

    def grant(
        self,
        request: Request,
        *,
        lease: float,
        deadline: Optional[float] = None,
        number: Optional[int] = None,
        bound_to: Optional[str] = None,
        by_layer: bool = False,
        map: bool = True,
        name: Optional[str] = None,
    ) -> Grant:
        """Grants pages, to be filled by a push of whoever has the handle. Arguments are as of :meth:`offer` and :meth:`pull`; ``lease`` is
        how long it waits for a producer, ``deadline`` counts from its invitation."""
        living = self._living()
        lowered = lower(request, self._ranks, self._groups)
        with self._pump.lock:
            number = self._number(number)
            given = _native.Grant(
                number=number,
                request=_pointer(lowered),
                lease_ns=nanoseconds(lease, "lease"),
                deadline_ns=0 if deadline is None else _positive(deadline, "deadline"),
                bound_to=_or_none(bound_to, "bound_to"),
                name=_or_none(name, "name"),
                by_layer=int(bool(by_layer)),
                no_map=int(not map),
            )
            handle = text_of(lib.moai_engine_grant, living, byref(given))
            grant = self._grants[number] = Grant(self, number, handle)
            return grant

    def layer_ready(self, offer: int, layer: Optional[int], tokens: int) -> None:
        """The first ``tokens`` tokens of a global layer of an offer are written; ``None`` is all layers."""
        which = 0xFFFF_FFFF if layer is None else whole(layer, "layer")
        call(lib.moai_engine_layer_ready, self._living(), whole(offer, "offer", 64), which, whole(tokens, "tokens"))

    def extend(self, offer: int, lease: float) -> None:
        """Keeps an offer's pages for at least so many seconds from now."""
        call(lib.moai_engine_extend, self._living(), whole(offer, "offer", 64), nanoseconds(lease, "lease"))

    def withdraw(self, offer: int) -> None:
        """Takes an offer back; :class:`Released` says when its pages are free."""
        call(lib.moai_engine_withdraw, self._living(), whole(offer, "offer", 64))

    def reuse(self, rank: int, page: int) -> None:
        """A page is about to be written for something else: what was read of it since it was offered is discarded. Needs ``counts_reuse``."""
        call(lib.moai_engine_reuse, self._living(), whole(rank, "rank"), whole(page, "page"))

    def push(self, offer: int, grant: str) -> None:
        """Asks the engine that made a grant to pull an offer into it. :class:`HandleError` says why that cannot be; :class:`Declined` tells if
        that engine does not take it."""
        call(lib.moai_engine_push, self._living(), whole(offer, "offer", 64), utf8(grant, "grant"))

    def cancel(self, transfer: int) -> None:
        """Ends a transfer; :class:`Ended` follows when its pages are free, by its deadline at the latest."""
        call(lib.moai_engine_cancel, self._living(), whole(transfer, "transfer", 64))

    def revoke(self, grant: int) -> None:
        """Takes a grant back; :class:`Returned` follows when its pages are free."""
        call(lib.moai_engine_revoke, self._living(), whole(grant, "grant", 64))

    # ---------------------------------------------------------------- events

    def poll(self) -> int:
        """Takes what has happened, without waiting: transfers, offers and grants know then, and events can be had. Returns how many."""
        return self._pump.poll()

    def next_event(self, timeout: Optional[float] = None) -> Optional[Event]:
        """The next event; ``None`` if none happens for so many seconds.

        Waiting for transfers takes no events from here: each is told here once. Of those that nobody takes the last
        65,536 are kept, and :attr:`missed_events` counts the others.
        """
        with_event = self._pump.wait(lambda: bool(self._events), timeout)
        return self._take() if with_event else None

    async def next_event_async(self, timeout: Optional[float] = None) -> Optional[Event]:
        """The same in an event loop."""
        with_event = await self._pump.wait_async(lambda: bool(self._events), timeout)
        return self._take() if with_event else None

    def events(self) -> list[Event]:
        """All events that have happened and were not taken, without waiting."""
        self.poll()
        with self._pump.lock:
            taken = list(self._events)
            self._events.clear()
            return taken

    @property
    def missed_events(self) -> int:
        """Events that were dropped because nobody took them."""
        return self._missed

    # ------------------------------------------------------------------- end

    def close(self) -> None:
        """Ends it, so that peers hear of it. Afterwards nothing of its memory is read or written. Whoever waits gets :class:`ClosedError`,
        or :class:`TransferCancelled` if that was heard of first.

        It takes half a second at most. Closing it again does nothing.
        """
        check_process(self._process, f"engine {self._name!r}")
        self._pump.close()
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        # In the child of a fork that leaves the block it is the parent's.
        if os.getpid() == self._process:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {', '.join(self._addresses)}"
        return f"<Engine {self._name!r}, {state}>"

    # ---------------------------------------------------------------- inside

    def _living(self) -> int:
        self._pump.check()
        return self._pointer

    def _read_addresses(self) -> tuple[str, ...]:
        count = c_uint32()
        call(lib.moai_engine_address_count, self._pointer, byref(count))
        return tuple(text_of(lib.moai_engine_address, self._pointer, i) for i in range(count.value))

    def _number(self, number: Optional[int]) -> int:
        """A number for an offer or grant."""
        number = self._next if number is None else whole(number, "number", 64)
        self._next = max(self._next, number + 1)
        return number

    def _take(self) -> Optional[Event]:
        with self._pump.lock:
            # Another thread may have taken it since.
            return self._events.popleft() if self._events else None

    def _drain(self) -> int:
        count = 0
        while True:
            event = _events.next_of(self._pointer)
            if event is None:
                return count
            if event is _events.OVER:
                self._pump.close()
                return count + 1
            count += 1
            self._missed += len(self._events) == MOST_EVENTS
            self._events.append(event)
            self._note(event)

    def _note(self, event: Event) -> None:
        """Lets its transfer, offer or grant know."""
        if isinstance(event, LayerPlaced):
            _do(self._transfers.get(event.transfer), lambda transfer: transfer._layers.add(event.layer))
        elif isinstance(event, Ended):
            transfer = self._transfers.get(event.transfer)
            if transfer is not None:
                transfer._outcome = event.outcome
                transfer._fenced = event.outcome.fenced
                if event.outcome.fenced:
                    del self._transfers[event.transfer]
        elif isinstance(event, Fenced):
            transfer = self._transfers.pop(event.transfer, None)
            if transfer is not None:
                transfer._fenced = True
        elif isinstance(event, Invited):
            transfer = self._transfers[event.transfer] = Transfer(self, event.transfer)
            grant = self._grants.pop(event.grant, None)
            if grant is not None:
                grant._transfer = transfer
        elif isinstance(event, Returned):
            grant = self._grants.pop(event.grant, None)
            if grant is not None:
                grant._returned = event.reason
        elif isinstance(event, Quarantined):
            _do(self._offers.get(event.offer), lambda offer: offer._quarantine(event.reason))
        elif isinstance(event, Released):
            offer = self._offers.pop(event.offer, None)
            if offer is not None:
                offer._released = event


MOST_EVENTS = 65_536
"""Events that are kept for whoever takes them: minutes of a busy engine, some tens of megabytes at most."""


def _end(pointer: int, regions: list[_Region], process: int) -> None:
    # In the child of a fork the engine is the parent's.
    if os.getpid() == process:
        lib.moai_engine_free(pointer)
    regions.clear()


def _if_there(drain: weakref.WeakMethod[Callable[[], int]]) -> int:
    there = drain()
    return there() if there is not None else 0


def _do(ours: Optional[_Ours], what: Callable[[_Ours], object]) -> None:
    if ours is not None:
        what(ours)


def _in_order(memory: object, ranks: Sequence[int], descriptor: Descriptor) -> list[Memory]:
    """Memory of all ranks of the node, one after another, checked against the description."""
    if isinstance(memory, Mapping):
        by_rank = dict(memory)
    elif len(ranks) == 1:
        by_rank = {ranks[0]: memory}
    else:
        raise ArgumentError(
            f"memory: the node has ranks {list(ranks)}: give a mapping from rank to its memory", field="memory", ours=type(memory).__name__
        )
    if set(by_rank) != set(ranks):
        raise ArgumentError(
            f"memory: it is given for ranks {sorted(by_rank, key=str)}, and the node has {sorted(ranks)}",
            field="memory",
            ours=str(sorted(by_rank, key=str)),
            theirs=str(sorted(ranks)),
        )
    in_order: list[Memory] = []
    for rank in ranks:
        field = f"memory[{rank}]"
        given = by_rank[rank]
        if isinstance(given, Memory) or not isinstance(given, Iterable):
            kind = type(given).__name__
            raise ArgumentError(f"{field}: an object of type {kind} is given; expected a list of Memory", field=field, ours=kind)
        given = list(given)
        for i, one in enumerate(given):
            if not isinstance(one, Memory):
                kind = type(one).__name__
                raise ArgumentError(
                    f"{field}[{i}]: an object of type {kind} is given; expected a Memory: Memory.from_buffer or from_dlpack makes one",
                    field=f"{field}[{i}]",
                    ours=kind,
                    theirs="Memory",
                )
        if rank >= descriptor.ranks:
            raise DescriptorError(
                f"ranks: rank {rank} is none of the description, which has {descriptor.ranks}",
                field="ranks",
                ours=str(rank),
                theirs=f"0 to {descriptor.ranks - 1}",
            )
        wanted = descriptor.regions(rank)
        if len(given) != len(wanted):
            names = ", ".join(region.name for region in wanted)
            raise MemoryRegistrationError(
                f"{field}: {len(given)} regions are given, and the description has {len(wanted)}: {names}",
                field=field,
                ours=str(len(given)),
                theirs=str(len(wanted)),
            )
        for i, (one, region) in enumerate(zip(given, wanted)):
            if one.length < region.bytes:
                raise MemoryRegistrationError(
                    f"{field}[{i}]: {region.name} has {one.length} bytes, and the description needs {region.bytes}",
                    field=f"{field}[{i}]",
                    ours=str(one.length),
                    theirs=str(region.bytes),
                )
        in_order += given
    return in_order


def _pointer(request: _native.Request) -> Any:
    return _native.pointer(request)


def _or_none(value: Optional[str], field: str) -> Optional[bytes]:
    return None if value is None else utf8(value, field)


def _epoch(epoch: object) -> int:
    number = whole(epoch, "epoch", 64)
    if number == 0:
        raise ArgumentError("epoch: 0 is no life; draw one at random, or give None", field="epoch", ours="0")
    return number


def _key(key: object) -> Any:
    if not isinstance(key, (bytes, bytearray)) or len(key) != 32:
        ours = f"{len(key)} bytes" if isinstance(key, (bytes, bytearray)) else type(key).__name__
        raise ArgumentError(f"key: it is {ours}; expected 32 bytes, as of secrets.token_bytes(32)", field="key", ours=ours, theirs="32 bytes")
    return bytes(key)


def _positive(value: object, field: str) -> int:
    """A span of time that is not 0, which the library takes for its default."""
    return max(nanoseconds(value, field), 1)
