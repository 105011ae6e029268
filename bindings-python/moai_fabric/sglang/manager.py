"""A rank's manager: its node, and the requests that are under way.

A thread of its own takes what peers and the node say; the scheduler's thread asks. A request is called by its bootstrap room.

SGLang frees a request's pages as soon as it hears that it has ended. So an end is told only when the node has let go of the pages:
`Released` on the prefill side, a fenced end on the decode side.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from dataclasses import dataclass, field

import zmq

from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common.conn import AbortNotification, CommonKVManager
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.utils.network import NetworkAddress, get_local_ip_auto

from . import bootstrap, messages, plugin, settings
from .messages import Done, Offer, Want
from .node import Ended, Fenced, NodeError, Released
from .rank import open_rank

logger = logging.getLogger(f"sglang.{__name__}")

# How long the thread waits for something to happen before it looks whether it is to end.
TURN_SECONDS = 0.5
# Rooms that decode ranks wait for, and no request has come to; the oldest is forgotten first.
MAX_WAITING = 1 << 16


@dataclass
class Outgoing:
    """A request on the prefill side, from its sender's start to the release of its pages."""

    number: int
    pages: list[int] = field(default_factory=list)
    tokens: int = 0
    # The node has them.
    is_offered: bool = False
    # Decode ranks that have pulled it, and what went wrong.
    done: set[tuple[str, int]] = field(default_factory=set)
    problem: str | None = None


@dataclass
class Target:
    """A request on the decode side, from its pages to its end."""

    room: int
    bootstrap_addr: str
    pages: list[int]
    aux_index: int
    infos: list[dict]
    offer: Offer | None = None
    transfer: int | None = None
    # The node may still write to the pages.
    is_held: bool = False
    # How it ended; empty if it was committed.
    problem: str | None = None


class MoaiKVManager(CommonKVManager):
    """See the module."""

    kv_status_msg_tag = messages.STATUS
    kv_status_msg_carries_reason = True

    def __init__(self, args, disaggregation_mode: DisaggregationMode, server_args, is_mla_backend: bool | None = False):
        self.settings = settings.read()
        role = "prefill" if disaggregation_mode == DisaggregationMode.PREFILL else "decode"
        if role == "decode" and not _is_radix_cache_off():
            raise ValueError(
                "--disaggregation-decode-enable-radix-cache: the backend moai moves whole requests, not what a decoder lacks of them: leave it off"
            )
        if args.state_types:
            kinds = ", ".join(kind.value for kind in args.state_types)
            raise ValueError(f"the pool keeps state beside keys and values ({kinds}), which the backend moai does not move")
        self.rank = open_rank(plugin.building.get(), role, self.settings, get_local_ip_auto())
        self.node, self.pool = self.rank.node, self.rank.pool
        self.outgoing: dict[int, Outgoing] = {}
        self.targets: dict[int, Target] = {}
        self._numbers = 0
        self._rooms: dict[int, int] = {}
        self._transfers: dict[int, Target] = {}
        self._known: dict[str, tuple[str, int]] = {}
        self._lock = threading.RLock()
        super().__init__(args, disaggregation_mode, server_args, is_mla_backend)
        if role == "decode":
            self._start_heartbeat_checker_thread()
        threading.Thread(target=self._run, name="moai", daemon=True).start()

    # SGLang's registry

    def register_to_bootstrap(self) -> None:
        super().register_to_bootstrap()
        host = self.bootstrap_host
        if self.dist_init_addr:
            host = NetworkAddress.parse(self.dist_init_addr).resolved().host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        node = {
            "engine": self.rank.engine,
            "epoch": self.rank.epoch,
            "node": self.rank.number,
            "ranks": [self.rank.number],
            "addresses": list(self.node.addresses),
        }
        bootstrap.put_node(NetworkAddress(host, self.bootstrap_port).to_url(), node)

    def try_ensure_parallel_info(self, bootstrap_addr: str) -> bool:
        return self.why_not(bootstrap_addr) is None and super().try_ensure_parallel_info(bootstrap_addr)

    def why_not(self, bootstrap_addr: str) -> str | None:
        """Why a request may not name this prefill server, if it may not: nothing is sent there then."""
        if bootstrap_addr in self.prefill_info_table:
            return None
        try:
            host = NetworkAddress.parse(bootstrap_addr).host
        except ValueError as error:
            return f"the request's bootstrap server {bootstrap_addr!r} is no address: {error}"
        if self.settings.allows(host):
            return None
        return f"the request's bootstrap server {bootstrap_addr} is not among SGLANG_MOAI_PEERS ({', '.join(self.settings.peers) or 'loopback'})"

    def build_receiver_registration_message(self) -> list[bytes]:
        return [messages.HELLO, messages.VERSION]

    def build_receiver_metadata_message(self, *, bootstrap_room: int, required_dst_info_num: int, **_) -> list[bytes]:
        return Want(bootstrap_room, self.local_ip, self.rank_port, required_dst_info_num).frames()

    # Prefill, from the scheduler's thread

    def open_outgoing(self, room: int) -> None:
        """A sender begins. All ranks create theirs in the same order, so numbers are the same on all of them."""
        with self._lock:
            self._numbers += 1
            self.outgoing[room] = Outgoing(self._numbers)

    def add_transfer_request(self, bootstrap_room, kv_indices, index_slice, is_last_chunk, aux_index=None, num_kv_tokens=None, **_) -> None:
        """Takes the pages of a chunk; with the last one the request is offered."""
        with self._lock:
            outgoing = self.outgoing.get(bootstrap_room)
            if outgoing is None or outgoing.problem is not None:
                return
            outgoing.pages += [int(page) for page in kv_indices]
            outgoing.tokens += num_kv_tokens
            if not is_last_chunk:
                return
            self.pool.copy_out(outgoing.pages)
            try:
                handle = self.node.offer(outgoing.number, outgoing.tokens, outgoing.pages, self.settings.lease, f"room {bootstrap_room}")
            except NodeError as error:
                self.conclude_failure(bootstrap_room=bootstrap_room, failure_reason=f"the pages cannot be offered: {error}")
                return
            outgoing.is_offered = True
            self._rooms[outgoing.number] = bootstrap_room
        self.update_status(bootstrap_room, KVPoll.Transferring)
        offer = Offer(
            bootstrap_room, self.rank.number, self.rank.engine, self.rank.epoch, handle, outgoing.tokens, self._aux(aux_index)
        )
        for endpoint, port in self._room_notify_targets(bootstrap_room):
            self._say(endpoint, port, offer)

    def withdraw(self, room: int, problem: str) -> bool:
        """Takes an offer back, if there is one: its end follows when its pages are free."""
        with self._lock:
            outgoing = self.outgoing.get(room)
            if outgoing is None or not outgoing.is_offered:
                return False
            outgoing.problem = outgoing.problem or problem
            self.node.withdraw(outgoing.number)
            return True

    def close_outgoing(self, room: int) -> None:
        """A sender ends."""
        with self._lock:
            outgoing = self.outgoing.pop(room, None)
            if outgoing is not None and outgoing.is_offered:
                self.node.withdraw(outgoing.number)

    # Decode, from the scheduler's thread

    def open_target(self, target: Target) -> None:
        """Pages for a request, to be filled when it is offered."""
        with self._lock:
            self.targets[target.room] = target

    def cancel(self, room: int) -> bool:
        """Ends a pull; whether its pages are still held."""
        with self._lock:
            target = self.targets.get(room)
            if target is None or not target.is_held:
                return False
            if target.transfer is not None:
                self.node.cancel(target.transfer)
            return target.is_held

    def close_target(self, room: int) -> None:
        """A receiver ends."""
        with self._lock:
            self.targets.pop(room, None)

    # The thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.server_socket, zmq.POLLIN)
        poller.register(self.node.fileno(), zmq.POLLIN)
        while True:
            try:
                ready = dict(poller.poll(TURN_SECONDS * 1000))
                if self.server_socket in ready:
                    self._heard(self.server_socket.recv_multipart())
                for event in self.node.events():
                    self._happened(event)
            except Exception:
                logger.exception("moai: what a peer said was not understood; the thread goes on")
                time.sleep(0.01)

    def _heard(self, frames: list[bytes]) -> None:
        tag = frames[0] if frames else b""
        if tag == messages.HELLO:
            if frames[1:2] != [messages.VERSION]:
                logger.warning("moai: a decoder speaks version %r of the backend's messages; this build speaks %r", frames[1:2], messages.VERSION)
        elif tag == b"ABORT":
            abort = AbortNotification.from_zmq(frames)
            if abort is not None:
                self._aborted(abort.room)
        elif tag == messages.STATUS:
            parsed = self.parse_kv_status_message(frames)
            if parsed is not None and parsed[1] == KVPoll.Failed:
                self._prefill_failed(parsed[0], parsed[3] or self.DEFAULT_PREFILL_FAILURE_REASON)
        else:
            message = messages.read(frames)
            if isinstance(message, Want):
                self._wanted(message)
            elif isinstance(message, Offer):
                self._offered(message)
            elif isinstance(message, Done):
                self._done(message)

    def _say(self, endpoint: str, port: int, message: Want | Offer | Done) -> None:
        address = NetworkAddress(endpoint, port)
        try:
            self._send_multipart_locked(address.to_tcp(), message.frames(), is_ipv6=address.is_ipv6)
        except zmq.ZMQError as error:
            logger.warning("moai: %s of room %s did not reach %s: %s", type(message).__name__, message.room, address.to_host_port_str(), error)

    # Prefill

    def _wanted(self, want: Want) -> None:
        """A decode rank waits; once all do, the scheduler may compute the request."""
        if len(self.transfer_infos) >= MAX_WAITING:
            oldest = next((room for room in self.transfer_infos if room not in self.outgoing), None)
            self.transfer_infos.pop(oldest, None)
        infos = self.transfer_infos.setdefault(want.room, {})
        infos[f"{want.endpoint}:{want.dst_port}"] = want
        # A room that has no sender yet is remembered: the sender looks.
        if want.room in self.outgoing and self.is_wanted(want.room):
            self.update_status(want.room, KVPoll.WaitingForInput)

    def is_wanted(self, room: int) -> bool:
        """Whether all decode ranks of a room wait."""
        infos = self.transfer_infos.get(room)
        return bool(infos) and len(infos) >= next(iter(infos.values())).required

    def _aborted(self, room: int) -> None:
        problem = "the decoder has aborted the request"
        if not self.withdraw(room, problem):
            self.record_failure(room, problem)
            self.update_status(room, KVPoll.Failed)

    def _done(self, done: Done) -> None:
        with self._lock:
            outgoing = self.outgoing.get(done.room)
            infos = self.transfer_infos.get(done.room, {})
            if outgoing is None or f"{done.endpoint}:{done.dst_port}" not in infos:
                return
            outgoing.done.add((done.endpoint, done.dst_port))
            if done.problem:
                outgoing.problem = outgoing.problem or f"the decoder's pull failed: {done.problem}"
            if outgoing.is_offered and len(outgoing.done) >= len(infos):
                # Those that have pulled it all are released by themselves.
                self.node.withdraw(outgoing.number)

    def _released(self, event: Released) -> None:
        with self._lock:
            room = self._rooms.pop(event.offer, None)
            outgoing = None if room is None else self.outgoing.get(room)
            if room is None or outgoing is None or outgoing.number != event.offer:
                return
            outgoing.is_offered = False
            wanted = len(self.transfer_infos.get(room, {}))
            complete = event.is_consumed or (len(outgoing.done) >= wanted and wanted > 0)
            problem = outgoing.problem or (None if complete else f"the offer ended before it was pulled: {event.why}")
        if problem is None:
            self.update_status(room, KVPoll.Success)
        else:
            self.conclude_failure(bootstrap_room=room, failure_reason=problem)

    def _aux(self, index: int) -> tuple[bytes, ...]:
        rows = zip(self.kv_args.aux_data_ptrs, self.kv_args.aux_item_lens)
        return tuple(ctypes.string_at(pointer + index * length, length) for pointer, length in rows)

    # Decode

    def _prefill_failed(self, room: int, problem: str) -> None:
        with self._lock:
            target = self.targets.get(room)
            if target is not None and target.is_held:
                # The pull says so itself, and when its pages are free.
                return
        self._fail(room, problem)

    def _fail(self, room: int, problem: str) -> None:
        if room in self.request_status:
            with self.failure_lock:
                self.failure_records.setdefault(room, problem)
            self.update_status(room, KVPoll.Failed)

    def _offered(self, offer: Offer) -> None:
        with self._lock:
            target = self.targets.get(offer.room)
            # The first of the server's ranks to offer stands for all: the others' pages are found by the same number.
            if target is None or target.offer is not None:
                return
            target.offer = offer
        problem = self._misfit(offer, target)
        if problem is None:
            try:
                self._meet(target, offer)
                self.start_pull(target, offer)
                return
            except (NodeError, RuntimeError) as error:
                problem = str(error)
        self._ended(target, problem)

    def _misfit(self, offer: Offer, target: Target) -> str | None:
        lengths = [len(row) for row in offer.aux]
        if lengths != list(self.kv_args.aux_item_lens):
            return f"metadata rows of {lengths} bytes; this server has {list(self.kv_args.aux_item_lens)}: do both run the same SGLang?"
        size, room = self.pool.page_size, len(target.pages)
        if -(-offer.tokens // size) != room:
            return f"{offer.tokens} tokens are offered; {room} pages of {size} tokens are given"
        return None

    def _meet(self, target: Target, offer: Offer) -> None:
        """Finds the nodes of the engine that offers, at the bootstrap server of the request."""
        if self._known.get(target.bootstrap_addr) == (offer.engine, offer.epoch):
            return
        nodes = bootstrap.get_nodes(target.bootstrap_addr)
        for node in nodes:
            if node.get("engine") != offer.engine:
                raise RuntimeError(f"engine {offer.engine} offers; {target.bootstrap_addr} is the bootstrap server of {node.get('engine')}")
        self.node.know(offer.engine, [(node["node"], node["ranks"], node["addresses"]) for node in nodes])
        self._known[target.bootstrap_addr] = (offer.engine, offer.epoch)

    def start_pull(self, target: Target, offer: Offer) -> None:
        """Begins to move the request. Raises `NodeError`."""
        with self._lock:
            # A request that has ended meanwhile gives its pages back.
            if self.targets.get(target.room) is not target or self.request_status.get(target.room) in (None, KVPoll.Failed):
                return
            target.transfer = self.node.pull(offer.handle, offer.tokens, target.pages, self.settings.deadline, f"room {target.room}")
            target.is_held = True
            self._transfers[target.transfer] = target
        self.update_status(target.room, KVPoll.Transferring)

    def _happened(self, event: Ended | Fenced | Released) -> None:
        if isinstance(event, Released):
            self._released(event)
            return
        target = self._transfers.get(event.transfer)
        if target is None:
            return
        if isinstance(event, Ended):
            target.problem = None if event.is_committed else f"{event.reason}: {event.why}"
            if not event.is_fenced:
                return
        del self._transfers[event.transfer]
        self._ended(target, target.problem)

    def _ended(self, target: Target, problem: str | None) -> None:
        """A pull is over, and its pages are this side's again."""
        if problem is None:
            self.pool.copy_in(target.pages)
            self.committed(target.room)
        target.is_held = False
        done = Done(target.room, problem or "", self.local_ip, self.rank_port)
        for info in target.infos:
            self._say(info["rank_ip"], info["rank_port"], done)
        if problem is None:
            self.update_status(target.room, KVPoll.Success)
        else:
            # What is known of the server may be of a life that has ended.
            self._known.pop(target.bootstrap_addr, None)
            self._fail(target.room, problem)

    def committed(self, room: int) -> None:
        """The pages of a room hold what was computed: its first token and what belongs to it are written beside them."""
        target = self.targets.get(room)
        if target is None or target.offer is None:
            return
        for row, pointer, length in zip(target.offer.aux, self.kv_args.aux_data_ptrs, self.kv_args.aux_item_lens):
            ctypes.memmove(pointer + target.aux_index * length, row, length)


def _is_radix_cache_off() -> bool:
    from sglang.srt.runtime_context import get_disagg

    return not get_disagg().disaggregation_decode_enable_radix_cache
