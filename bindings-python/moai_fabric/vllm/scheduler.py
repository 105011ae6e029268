"""The scheduler's half: which requests are offered and pulled, what their pages are, and when they are free again."""

from __future__ import annotations

import itertools
import logging
import queue
import time
from typing import Any

from vllm.v1.request import RequestStatus

from . import handles, params
from .channel import Listener, Waiting
from .handles import Handle
from .messages import MoaiHandshake, MoaiMetadata, OfferOrder, PullOrder
from .paging import Group
from .params import ParamsError, Remote
from .settings import Settings

# Under the name that vLLM shows.
logger = logging.getLogger(f"vllm.{__name__}")

# The handle's expiry is a hint for handles that nobody remembers: the lease decides, and heartbeats extend it.
HANDLE_SECONDS = 24 * 3600


class Scheduler:
    """See the module."""

    def __init__(self, config, settings: Settings, cache_config):
        self._parallel = config.parallel_config
        self._settings = settings
        self._transferred = cache_config.transfer_group_ids
        self._workers = 0
        # Of the first worker, from `meet` on: requests come after it.
        self._handshake: MoaiHandshake
        self._listener: Listener | None = None
        self._waiting = Waiting(settings.heartbeat_interval)
        self._manager: Any
        # Producer: requests to be offered, what was offered, and the blocks that are kept for it.
        self._producing: dict[str, Any] = {}
        self._offered: dict[str, tuple[int, dict[str, Any]]] = {}
        self._kept: dict[int, list] = {}
        self._let_go: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._leases: queue.SimpleQueue = queue.SimpleQueue()
        # Consumer: what new requests name, and pulls that are on.
        self._remotes: dict[str, Remote | str] = {}
        self._pulling: dict[str, Remote | str] = {}
        self._next = MoaiMetadata()

    def bind(self, manager) -> None:
        self._manager = manager

    # Handshake

    def meet(self, workers: dict[tuple[int, int], MoaiHandshake]) -> None:
        """Takes what all workers say, and answers decode engines from now on."""
        self._workers = len(workers)
        first = next(iter(workers.values()))
        self._handshake = first
        nodes = [
            {"node": worker.node, "ranks": list(worker.ranks), "addresses": list(worker.addresses)} for worker in workers.values()
        ]
        host, port = self._settings.side_channel_host, self._settings.side_channel_port
        self._listener = Listener(
            host, port, first.engine, first.epoch, first.key, nodes, lambda what, number: self._leases.put((what, number))
        )
        logger.info("MoaiConnector: engine %s, side channel %s:%s, workers at %s", first.engine, host, port, nodes)

    @property
    def _groups(self) -> tuple[Group, ...]:
        return self._handshake.groups

    def _pages(self, tables: tuple[list[int], ...], tokens: int) -> tuple[tuple[int, ...], ...]:
        chosen = [tables[group] for group in self._transferred]
        return tuple(tuple(group.pages(table, tokens)) for group, table in zip(self._groups, chosen))

    # Requests

    def new_request(self, request) -> None:
        """Reads what a request says of another engine, which is told from now on that it is waited for."""
        if not params.wants_prefill(request.kv_transfer_params):
            return
        try:
            remote = params.remote(request.kv_transfer_params, self._settings.peers)
        except ParamsError as error:
            self._remotes[request.request_id] = str(error)
            return
        self._remotes[request.request_id] = remote
        self._waiting.add(request.request_id, remote.host, remote.port, remote.text)

    def matched(self, request, computed: int) -> tuple[int, bool]:
        """All tokens but the last, which is computed here, since its logits are wanted."""
        if not params.wants_prefill(request.kv_transfer_params):
            return 0, False
        count = request.num_prompt_tokens - 1 - computed
        return (count, True) if count > 0 else (0, False)

    def allocated(self, request, blocks, external: int) -> None:
        wanted = request.kv_transfer_params
        if params.wants_decode(wanted):
            self._producing[request.request_id] = request
        if not params.wants_prefill(wanted):
            return
        # One transfer a request: what is preempted or fails is computed here.
        wanted["do_remote_prefill"] = False
        remote = self._remotes.pop(request.request_id, f"{params.HANDLE} is missing")
        if external == 0:
            self._unneeded(request.request_id, remote)
            return
        tokens = request.num_prompt_tokens - 1
        problem, source = (remote, None) if isinstance(remote, str) else (None, remote)
        if source is not None and source.handle.tokens != tokens:
            problem = f"the handle is of {source.handle.tokens + 1} tokens, and the prompt has {tokens + 1}: the prompts differ"
        self._pulling[request.request_id] = remote
        self._next.pulls.append(
            PullOrder(
                request=request.request_id,
                remote=None if problem else source,
                tokens=tokens,
                first=tokens - external,
                pages=self._pages(blocks.get_block_ids(), tokens),
                problem=problem,
            )
        )

    def _unneeded(self, request: str, remote: Remote | str) -> None:
        self._waiting.remove(request)
        if isinstance(remote, Remote):
            self._waiting.release(remote.host, remote.port, remote.text)

    def finished(self, request) -> tuple[bool, dict[str, Any] | None]:
        """Pages that are offered are kept by references of their own, so a request's own can go."""
        name = request.request_id
        self._producing.pop(name, None)
        if name in self._remotes:
            # It never got pages.
            self._unneeded(name, self._remotes.pop(name))
        if name in self._pulling:
            self._next.cancels.append(name)
            self._unneeded(name, self._pulling.pop(name))
        number, answer = self._offered.pop(name, (None, None))
        if number is None:
            return False, None
        if request.status in (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED):
            return False, answer
        self._next.withdraws.append(number)
        return False, None

    # Steps

    def orders(self, scheduled) -> MoaiMetadata:
        """The orders of a step that is about to be computed."""
        for name, count in scheduled.num_scheduled_tokens.items():
            request = self._producing.get(name)
            if request is not None and request.num_computed_tokens + count >= request.num_prompt_tokens:
                del self._producing[name]
                self._offer(request)
        while True:
            try:
                what, number = self._leases.get_nowait()
            except queue.Empty:
                break
            if number in self._kept:
                (self._next.extends if what == "extend" else self._next.withdraws).append(number)
        orders, self._next = self._next, MoaiMetadata()
        orders.idle = scheduled.total_num_scheduled_tokens == 0
        return orders

    def _offer(self, request) -> None:
        tokens = request.num_prompt_tokens - 1
        if tokens == 0 or request.request_id in self._offered:
            return
        blocks = self._manager.get_blocks(request.request_id).blocks
        pages = self._pages(tuple([block.block_id for block in group] for group in blocks), tokens)
        kept = []
        for group, at in zip(self._groups, self._transferred):
            where = group.blocks(blocks[at], tokens)
            kept += blocks[at][where.start : where.stop]
        self._manager.block_pool.touch(kept)
        number = next(self._numbers)
        self._kept[number] = kept
        said = self._handshake
        handle = Handle(said.engine, said.epoch, number, tokens, int((time.time() + HANDLE_SECONDS) * 1000))
        text = handles.seal(handle, handles.page_set([list(group) for group in pages]), said.key)
        answer = params.answer(
            engine=said.engine,
            request=request.request_id,
            pages=[list(group) for group in pages],
            host=self._settings.side_channel_host,
            port=self._settings.side_channel_port,
            tp_size=self._parallel.tensor_parallel_size,
            pp_size=self._parallel.pipeline_parallel_size,
            tokens=tokens + 1,
            handle=text,
        )
        self._offered[request.request_id] = (number, answer)
        self._next.offers.append(OfferOrder(number, request.request_id, tokens, pages))

    def done(self, output) -> None:
        """Takes what the workers say after a step."""
        for name in output.finished_recving or ():
            remote = self._pulling.pop(name, None)
            if remote is not None and name in output.failed_recving:
                # It is computed here, or has ended: nobody pulls it any more.
                self._unneeded(name, remote)
            self._waiting.remove(name)
        released = output.kv_connector_worker_meta.released if output.kv_connector_worker_meta else {}
        for number, count in released.items():
            self._let_go[number] = self._let_go.get(number, 0) + count
            if self._let_go[number] >= self._workers:
                del self._let_go[number]
                # Later blocks of a request are evicted before earlier ones.
                self._manager.block_pool.free_blocks(reversed(self._kept.pop(number, [])))

    def is_busy(self) -> bool:
        """Whether the engine must go on stepping, for others."""
        return bool(self._kept or self._next.cancels)

    def close(self) -> None:
        self._waiting.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
