"""Two processes; forks; interpreters that exit with engines alive."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from caches import DECODE, PREFILL, decode_rows, fill, memory_for, prefill_rows, untouched
from conftest import LIMIT, Pair

import moai_fabric as moai

HERE = Path(__file__).parent
ITS, OWN = [5, 0, 7, 1, 2, 3, 4], [3, 1, 0, 6]


@pytest.mark.parametrize("way", ["tcp", "shm"])
def test_two_processes_with_unlike_layouts(way: str) -> None:
    with subprocess.Popen([sys.executable, str(HERE / "producer.py"), way, "31"], stdout=subprocess.PIPE, text=True) as producer:
        assert producer.stdout is not None
        told = json.loads(producer.stdout.readline())
        own = moai.Descriptor(DECODE)
        memory = memory_for(own)
        with moai.Engine("decode", own, memory, {"transports": way}) as decode:
            decode.know("prefill", [moai.Node(0, (0,), tuple(told["addresses"]))])
            outcome = decode.pull(told["handle"], moai.Request(100, OWN), deadline=LIMIT).wait(LIMIT)
            # Waits for what the producer says while this engine lives: its peers hear of its end.
            assert producer.stdout.readline() == "consumed\n"
    assert producer.returncode == 0
    there = memory_for(moai.Descriptor(PREFILL))
    fill(there, 31)
    assert np.array_equal(decode_rows(memory, OWN, 100), prefill_rows(there, ITS, 100))
    assert untouched(memory, OWN)
    assert {route["provider"] for route in outcome.report["routes"]} == {way}
    assert (outcome.report["bytes_mapped"] > 0) == (way == "shm")


def test_a_producer_that_is_killed_fails_the_transfer_with_its_name() -> None:
    script = (HERE / "producer.py").read_text().replace("lease=60)", "lease=60, progressive=True)")
    with subprocess.Popen([sys.executable, "-c", script, "tcp", "31"], stdout=subprocess.PIPE, text=True, cwd=HERE) as producer:
        assert producer.stdout is not None
        told = json.loads(producer.stdout.readline())
        own = moai.Descriptor(DECODE)
        with moai.Engine("decode", own, memory_for(own), {"transports": "tcp"}) as decode:
            decode.know("prefill", [moai.Node(0, (0,), tuple(told["addresses"]))])
            decode.next_event(LIMIT)
            transfer = decode.pull(told["handle"], moai.Request(100, OWN), deadline=LIMIT)
            producer.send_signal(signal.SIGKILL)
            with pytest.raises(moai.TransferFailed) as error:
                transfer.wait(LIMIT)
            assert error.value.outcome is not None and error.value.outcome.reason in ("lost", "deadline")
            assert transfer.wait_fenced(LIMIT) is error.value.outcome


def in_child(what: str) -> str:
    """Forks, and returns what the child says; it says nothing and is killed if it hangs."""
    program = textwrap.dedent(
        """
        import os, sys, moai_fabric as moai
        from caches import PREFILL, memory_for
        side = moai.Descriptor(PREFILL)
        memory = memory_for(side)
        engine = moai.Engine("alone", side, memory)
        offer = engine.offer(moai.Request(100, [5, 0, 7, 1, 2, 3, 4]), lease=60)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                print(WHAT)
            except moai.Error as error:
                print(type(error).__name__, error)
            sys.stdout.flush()
            if EXIT:
                sys.exit(0)  # with all that is there: finalizers, atexit
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print("child", os.waitstatus_to_exitcode(status))
        print("parent", engine.stats()["links"], offer.released)
        engine.close()
        """
    )
    program = program.replace("WHAT", what).replace("EXIT", "1")
    # From 3.12 on, Python itself warns of forks of processes with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE, check=False)
    assert done.returncode == 0 and done.stderr == "", done
    assert "child 0\nparent 0 None\n" in done.stdout, done
    return done.stdout


@pytest.mark.parametrize(
    "what",
    ["engine.stats()", "engine.poll()", "engine.close()", "offer.withdraw()", "offer.wait_released()", "engine.next_event(1)", "memory[0].address"],
)
def test_what_was_made_before_a_fork_says_so_in_the_child(what: str) -> None:
    said = in_child(what)
    assert said.startswith("ForkError "), said
    assert "spawn" in said


def test_a_child_of_a_fork_that_lets_everything_go_leaves_the_parent_alone() -> None:
    said = in_child("[globals().pop(name) for name in ('engine', 'offer', 'memory', 'side')] and __import__('gc').collect() >= 0")
    # The names of the parent are needed again there: they are the parent's own.
    assert said.startswith("True"), said


def test_a_child_of_a_fork_leaves_the_block_of_its_parents_engine_silently() -> None:
    said = in_child("engine.__exit__(None, None, None)")
    assert said.startswith("None"), said


@pytest.mark.parametrize(
    "end",
    [
        "",
        "import sys; sys.exit(0)",
        """
def wait():
    try:
        transfer.wait()
    except (moai.ClosedError, moai.TransferCancelled):
        pass  # as closing cancels it, either may be heard of first
import threading, time
threading.Thread(target=wait, daemon=True).start()
time.sleep(0.2)
""",
        "del engine, other, transfer",
        "keep = other.__dict__; other.me = other; del other",
    ],
)
def test_an_interpreter_exits_with_engines_alive(end: str) -> None:
    program = textwrap.dedent(
        """
        import moai_fabric as moai
        from caches import DECODE, PREFILL, memory_for
        its, own = moai.Descriptor(PREFILL), moai.Descriptor(DECODE)
        engine = moai.Engine("prefill", its, memory_for(its))
        other = moai.Engine("decode", own, [moai.Memory.from_buffer(bytearray(region.bytes)) for region in own.regions(0)])
        other.know("prefill", [moai.Node(0, (0,), engine.addresses)])
        offer = engine.offer(moai.Request(100, [5, 0, 7, 1, 2, 3, 4]), lease=60, progressive=True)
        transfer = other.pull(offer.handle, moai.Request(100, [3, 1, 0, 6]), deadline=30)
        print("started")
        """
    )
    done = subprocess.run([sys.executable, "-c", program + end], capture_output=True, text=True, timeout=20, cwd=HERE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_a_wait_is_interrupted_from_the_keyboard(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            transfer.wait(LIMIT)
        # From within a handler it may even be closed.
        signal.signal(signal.SIGALRM, lambda *_: pair.decode.close())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(moai.ClosedError):
            transfer.wait(LIMIT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
