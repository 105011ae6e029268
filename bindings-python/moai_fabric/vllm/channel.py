"""The side channel: where a decode engine asks a prefill engine for its workers' addresses, and tells it that it still waits.

One ZeroMQ socket in the scheduler's process, on the host and port that vLLM's NIXL connector would have. A message is one frame of JSON
of at most 64 KiB; nothing is unpickled. Whatever comes that is no such message is answered with an error, and the next is listened to.
What extends or ends a lease must bring the handle, whose seal only this engine can have made.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from typing import Any, Callable

import zmq

from . import handles
from .handles import HandleError

# Under the name that vLLM shows.
logger = logging.getLogger(f"vllm.{__name__}")

VERSION = 1
MAX_BYTES = 64 << 10
MAX_HANDLES = 128
MAX_NODES = 1024
MAX_ADDRESSES = 16
REPLY_SECONDS = 5.0
# How long a peer that could not be used is not asked again: doubling from the first to the second.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 60.0


class ChannelError(Exception):
    """A peer could not be asked, or its answer not used."""


def _url(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class Listener:
    """Answers decode engines, in a thread of its own.

    `node` is called with what one asks beyond the description: `("extend" or "release", offer number)`.
    """

    def __init__(self, host: str, port: int, engine: str, epoch: int, key: bytes, nodes: list[dict], lease: Callable[[str, int], None]):
        self._said = {"moai": VERSION, "engine": engine, "epoch": epoch, "nodes": nodes}
        self._engine, self._epoch, self._key, self._lease = engine, epoch, key, lease
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, 1)
        try:
            self._socket.bind(_url(host, port))
        except zmq.ZMQError as error:
            self._context.destroy()
            raise ChannelError(f"cannot listen on side channel {host}:{port}: {error}; choose another VLLM_NIXL_SIDE_CHANNEL_PORT") from error
        self._thread = threading.Thread(target=self._run, name="moai-side-channel", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        while not self._stop.is_set():
            if not poller.poll(200):
                continue
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                answer = self.answer(frames[-1])
                self._socket.send_multipart([frames[0], b"", json.dumps(answer).encode()], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                # A peer that is gone, or does not read; others are served.
                logger.debug("side channel: %s", error)
        self._socket.close()
        self._context.term()

    def answer(self, frame: bytes) -> dict[str, Any]:
        """What a message is answered with."""
        try:
            message = json.loads(frame)
            if not isinstance(message, dict):
                raise ValueError("not an object")
            if message.get("moai") != VERSION:
                return {"error": f"side channel version {message.get('moai')!r} is not known here; this build speaks {VERSION}"}
            what = message.get("ask")
            if what == "describe":
                return self._said
            if what in ("extend", "release"):
                return self._leases(what, message.get("handles"))
            return {"error": f"ask: {what!r}; expected describe, extend or release"}
        except (ValueError, RecursionError) as error:
            return {"error": f"not a message of MoaiConnector: {error}"}

    def _leases(self, what: str, texts: Any) -> dict[str, Any]:
        if not isinstance(texts, list) or len(texts) > MAX_HANDLES:
            return {"error": f"handles: expected a list of at most {MAX_HANDLES}"}
        done = 0
        for text in texts:
            try:
                handle = handles.read(text)
            except HandleError:
                continue
            if (handle.engine, handle.epoch) == (self._engine, self._epoch) and handles.is_sealed_by(text, self._key):
                self._lease(what, handle.number)
                done += 1
        return {"moai": VERSION, "done": done}

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def ask(host: str, port: int, message: dict[str, Any], seconds: float = REPLY_SECONDS) -> dict[str, Any]:
    """Asks a side channel once.

    Raises `ChannelError` if nothing that can be used comes in time.
    """
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, 16 * MAX_BYTES)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.RCVTIMEO, int(seconds * 1000))
        socket.setsockopt(zmq.SNDTIMEO, int(seconds * 1000))
        socket.connect(_url(host, port))
        socket.send(json.dumps({"moai": VERSION, **message}).encode())
        answer = json.loads(socket.recv())
    except zmq.Again:
        raise ChannelError(f"side channel {host}:{port} did not answer within {seconds:g} s") from None
    except (zmq.ZMQError, ValueError, RecursionError) as error:
        raise ChannelError(f"side channel {host}:{port}: {error}") from error
    finally:
        socket.close()
        context.term()
    if not isinstance(answer, dict):
        raise ChannelError(f"side channel {host}:{port}: the answer is no object")
    if "error" in answer:
        raise ChannelError(f"side channel {host}:{port} says: {str(answer['error'])[:300]}")
    return answer


def nodes_of(answer: dict[str, Any], engine: str) -> tuple[int, list[tuple[int, list[int], list[str]]]]:
    """Epoch and nodes (number, ranks, addresses) that a description says an engine has.

    Raises `ChannelError` for what cannot be used.
    """

    def number(value: Any, most: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

    if answer.get("moai") != VERSION:
        raise ChannelError(f"it speaks version {answer.get('moai')!r}, and this build {VERSION}")
    if answer.get("engine") != engine:
        raise ChannelError(f"it is engine {str(answer.get('engine'))[:96]!r}, but the handle is of {engine!r}")
    nodes = answer.get("nodes")
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES or not number(answer.get("epoch"), 2**64 - 1):
        raise ChannelError(f"its description has no epoch, or not 1 to {MAX_NODES} nodes")
    found: list[tuple[int, list[int], list[str]]] = []
    for node in nodes:
        ranks: Any = node.get("ranks") if isinstance(node, dict) else None
        addresses: Any = node.get("addresses") if isinstance(node, dict) else None
        fits = (
            isinstance(ranks, list)
            and 1 <= len(ranks) <= MAX_NODES
            and all(number(rank, MAX_NODES) for rank in ranks)
            and isinstance(addresses, list)
            and 1 <= len(addresses) <= MAX_ADDRESSES
            and all(isinstance(address, str) and len(address) <= 512 for address in addresses)
            and number(node.get("node"), MAX_NODES)
        )
        if not fits:
            raise ChannelError("a node of its description cannot be read")
        found.append((node["node"], ranks, addresses))
    return answer["epoch"], found


class Asker:
    """Asks peers for their descriptions, a few at once, in threads of its own."""

    THREADS = 4

    def __init__(self) -> None:
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._found: queue.SimpleQueue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def ask(self, engine: str, host: str, port: int) -> None:
        """Asks; what comes of it is in a later `found`."""
        if len(self._threads) < self.THREADS:
            thread = threading.Thread(target=self._run, name=f"moai-asks-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put((engine, host, port))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            engine, host, port = work
            try:
                self._found.put((engine, nodes_of(ask(host, port, {"ask": "describe"}), engine), None))
            except ChannelError as error:
                self._found.put((engine, None, str(error)))

    def found(self) -> list[tuple[str, tuple[int, list] | None, str | None]]:
        """Engines whose descriptions have come, or why not."""
        found = []
        while True:
            try:
                found.append(self._found.get_nowait())
            except queue.Empty:
                return found

    def close(self) -> None:
        for _ in self._threads:
            self._work.put(None)


class Waiting:
    """What this engine waits for: tells the prefill engines, now and then, so that they keep the pages."""

    def __init__(self, interval: float):
        self._interval = interval
        self._lock = threading.Lock()
        self._remotes: dict[str, tuple[str, int, str]] = {}
        self._released: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, request: str, host: str, port: int, handle: str) -> None:
        with self._lock:
            self._remotes[request] = (host, port, handle)
        self._start()

    def remove(self, request: str) -> None:
        with self._lock:
            self._remotes.pop(request, None)

    def release(self, host: str, port: int, handle: str) -> None:
        """Nothing of a handle is needed: its pages can be freed at once."""
        self._released.put((host, port, handle))
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="moai-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            try:
                work = self._released.get(timeout=max(0.01, last + self._interval - time.monotonic()))
                if work is None:
                    return
                host, port, handle = work
                self._tell("release", host, port, [handle])
            except queue.Empty:
                pass
            if time.monotonic() - last < self._interval:
                continue
            last = time.monotonic()
            with self._lock:
                remotes = list(self._remotes.values())
            by_channel: dict[tuple[str, int], list[str]] = {}
            for host, port, handle in remotes:
                by_channel.setdefault((host, port), []).append(handle)
            for (host, port), texts in by_channel.items():
                for start in range(0, len(texts), MAX_HANDLES):
                    self._tell("extend", host, port, texts[start : start + MAX_HANDLES])

    @staticmethod
    def _tell(what: str, host: str, port: int, texts: list[str]) -> None:
        try:
            ask(host, port, {"ask": what, "handles": texts}, seconds=1.0)
        except ChannelError as error:
            # The lease runs out by itself; the pull then fails with its reason.
            logger.debug("lease not told: %s", error)

    def close(self) -> None:
        if self._thread is not None:
            self._released.put(None)
