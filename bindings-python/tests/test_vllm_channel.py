"""The vLLM connector's side channel, which needs ZeroMQ, as vLLM does."""

import json
import socket

import pytest

from moai_fabric.vllm import handles
from moai_fabric.vllm.handles import Handle

zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")

from moai_fabric.vllm import channel  # noqa: E402

KEY = bytes(range(32))
HANDLE = Handle("prefill-0", 7, 3, 69, 1_790_000_000_000)


def sealed(key: bytes = KEY, handle: Handle = HANDLE) -> str:
    return handles.seal(handle, handles.page_set([[1, 2, 3]]), key)


@pytest.fixture
def listener():
    leases = []
    nodes = [{"node": 0, "ranks": [0], "addresses": ["tcp:127.0.0.1:1"]}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = channel.Listener("127.0.0.1", port, "prefill-0", 7, KEY, nodes, lambda what, number: leases.append((what, number)))
    yield port, leases
    made.close()


def test_a_description_is_what_was_given(listener):
    port, _ = listener
    answer = channel.ask("127.0.0.1", port, {"ask": "describe"})
    assert channel.nodes_of(answer, "prefill-0") == (7, [(0, [0], ["tcp:127.0.0.1:1"])])
    with pytest.raises(channel.ChannelError, match="but the handle is of"):
        channel.nodes_of(answer, "prefill-1")


def test_only_sealed_handles_of_this_life_touch_a_lease(listener):
    port, leases = listener
    other_life = sealed(handle=Handle("prefill-0", 8, 4, 1, 0))
    texts = [sealed(), sealed(bytes(32)), other_life, "nonsense", 7]
    assert channel.ask("127.0.0.1", port, {"ask": "extend", "handles": texts}) == {"moai": 1, "done": 1}
    channel.ask("127.0.0.1", port, {"ask": "release", "handles": [sealed()]})
    assert leases == [("extend", 3), ("release", 3)]


def test_whatever_comes_the_next_is_answered(listener):
    port, _ = listener
    context = zmq.Context()
    for frames in ([b""], [b"\x93\x00"], [b"{"], [b"[" * 5000], [b"a", b"b", b"c"], [b"x" * (1 << 20)], [json.dumps({"moai": 2}).encode()]):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.send_multipart(frames)
        socket.close(linger=100)
    context.term()
    assert channel.ask("127.0.0.1", port, {"ask": "describe"})["engine"] == "prefill-0"
    with pytest.raises(channel.ChannelError, match="expected describe"):
        channel.ask("127.0.0.1", port, {"ask": "everything"})


def test_nobody_there_is_an_error_in_time():
    with pytest.raises(channel.ChannelError, match="did not answer within 0.2 s"):
        channel.ask("127.0.0.1", 1, {"ask": "describe"}, seconds=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"moai": 2},
        {"epoch": -1},
        {"epoch": 2**64},
        {"nodes": []},
        {"nodes": [7]},
        {"nodes": [{"node": 0, "ranks": [0], "addresses": []}]},
        {"nodes": [{"node": 0, "ranks": [2**40], "addresses": ["tcp:a:1"]}]},
        {"nodes": [{"node": 0, "ranks": [0], "addresses": ["x" * 600]}]},
        {"nodes": [{"node": 0, "ranks": [0], "addresses": ["tcp:a:1"]}] * 2000},
    ],
)
def test_descriptions_that_cannot_be_used_are_refused(changes):
    good = {"moai": 1, "engine": "e", "epoch": 1, "nodes": [{"node": 0, "ranks": [0], "addresses": ["tcp:a:1"]}]}
    channel.nodes_of(good, "e")
    with pytest.raises(channel.ChannelError):
        channel.nodes_of({**good, **changes}, "e")
