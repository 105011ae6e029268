"""Engines that move caches between unlike sides, every number compared."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from caches import DECODE, LAYERS, PREFILL, decode_rows, fill, memory_for, prefill_rows, untouched
from conftest import LIMIT, Pair, start_pair

import moai_fabric as moai
from moai_fabric import events

ITS, OWN = [5, 0, 7, 1, 2, 3, 4], [3, 1, 0, 6]
"""Pages of 100 tokens: seven of 16 there, four of 32 here."""


def pull(pair: Pair, offer: moai.Offer, **more: Any) -> moai.Transfer:
    return pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT, **more)


def equal(pair: Pair, tokens: int = 100) -> bool:
    there, here = prefill_rows(pair.its, ITS, tokens), decode_rows(pair.own, OWN, tokens)
    return np.array_equal(there, here) and bool(here.any())


def test_a_request_moves_between_unlike_sides(pair_each_way: Pair) -> None:
    pair = pair_each_way
    offer = pair.prefill.offer(moai.Request(100, ITS, digest="full"), lease=60)
    transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN, digest="full"), name="mine")
    outcome = transfer.wait(LIMIT)
    assert equal(pair)
    assert untouched(pair.own, OWN)
    assert outcome.committed and outcome.fenced and outcome.dirty == () and outcome.reason is None
    assert outcome.report["bytes_written"] == 100 * LAYERS * 2 * 4 * 64 * 4
    assert outcome.report["request"] == "mine"
    assert transfer.done and transfer.fenced and transfer.outcome is outcome and "committed" in repr(transfer)
    released = offer.wait_released(LIMIT)
    assert released.reason == "consumed" and released.outcome.committed
    told = [type(event) for event in pair.decode.events()]
    assert told.count(events.Ended) == 1 and events.PeerUp in told
    assert pair.decode.stats()["committed"] == 1
    assert pair.decode.ready()[0]
    assert "moai_" in pair.decode.metrics()


def test_tokens_that_are_held_are_not_moved(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
    transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN, held=40), deadline=LIMIT)
    transfer.wait(LIMIT)
    here = decode_rows(pair.own, OWN, 100)
    assert not here[:, :, :40].any()
    assert np.array_equal(here[:, :, 40:], prefill_rows(pair.its, ITS, 100)[:, :, 40:])


def test_only_the_layers_that_are_asked_for_move(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS, layers=range(1, 2)), lease=60)
    pair.decode.pull(offer.handle, moai.Request(100, OWN, layers=range(1, 2)), deadline=LIMIT).wait(LIMIT)
    there, here = prefill_rows(pair.its, ITS, 100), decode_rows(pair.own, OWN, 100)
    assert not here[0].any() and np.array_equal(here[1], there[1])


def test_layers_are_waited_for_one_by_one(pair_each_way: Pair) -> None:
    pair = pair_each_way
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    transfer = pull(pair, offer, by_layer=True)
    with pytest.raises(TimeoutError):
        transfer.wait_layer(1, 0.1)
    offer.layer_ready(1, 100)
    transfer.wait_layer(1, LIMIT)
    assert transfer.layers == {1} and not transfer.done
    assert np.array_equal(decode_rows(pair.own, OWN, 100)[1], prefill_rows(pair.its, ITS, 100)[1])
    offer.layer_ready(None, 100)
    transfer.wait_layer(0, LIMIT)
    transfer.wait(LIMIT)
    assert equal(pair)


def test_a_push_fills_a_grant(pair: Pair) -> None:
    pair.decode.next_event(LIMIT)  # linked
    grant = pair.decode.grant(moai.Request(100, OWN), lease=60, deadline=LIMIT)
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
    assert moai.describe_handle(grant.handle)["kind"] == "grant"
    offer.push(grant.handle)
    transfer = grant.wait_invited(LIMIT)
    transfer.wait(LIMIT)
    assert grant.transfer is transfer and equal(pair)


def test_a_grant_that_nobody_fills_comes_back(pair: Pair) -> None:
    grant = pair.decode.grant(moai.Request(100, OWN), lease=60)
    grant.revoke()
    with pytest.raises(moai.TransferFailed) as error:
        grant.wait_invited(LIMIT)
    assert grant.returned == "withdrawn" and error.value.field == "grant"


def test_a_transfer_that_is_cancelled_says_which_pages_are_dirty(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    transfer = pull(pair, offer)
    transfer.cancel()
    with pytest.raises(moai.TransferCancelled) as error:
        transfer.wait(LIMIT)
    outcome = error.value.outcome
    assert outcome is not None and outcome.result == "cancelled" and outcome.message
    assert transfer.wait_fenced(LIMIT) is transfer.outcome
    transfer.cancel()
    offer.withdraw()
    assert offer.wait_released(LIMIT).reason in ("withdrawn", "cancelled", "not_owed")


def test_a_transfer_that_misses_its_deadline_fails_with_the_reason(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    offer.layer_ready(0, 100)
    transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=0.5)
    with pytest.raises(moai.TransferFailed) as error:
        transfer.wait(LIMIT)
    outcome = error.value.outcome
    assert outcome is not None and outcome.result == "failed" and outcome.reason == "deadline"
    assert {page for dirty in outcome.dirty for page in dirty.pages} <= set(OWN)
    assert not isinstance(error.value, moai.TransferCancelled)
    assert outcome.report["ended"]["outcome"] == "failed"


def test_leases_run_out_and_are_extended(pair: Pair) -> None:
    short = pair.prefill.offer(moai.Request(100, ITS), lease=0.2)
    long = pair.prefill.offer(moai.Request(100, ITS), lease=0.2)
    long.extend(60)
    assert short.wait_released(LIMIT).reason == "expired"
    assert long.released is None
    pull(pair, long).wait(LIMIT)
    with pytest.raises(moai.TransferFailed) as error:
        pull(pair, short).wait(LIMIT)
    assert error.value.outcome is not None and error.value.outcome.reason in ("refused", "expired", "unknown_offer")


def test_handles_that_are_none_are_refused(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
    request = moai.Request(100, OWN)
    told = moai.describe_handle(offer.handle)
    assert (told["kind"], told["engine"], told["number"], told["tokens"]) == ("offer", "prefill", offer.number, 100)
    for handle in ["", "x", offer.handle[:-4], offer.handle + "AAAA", 5, None, "\0", "\ud800"]:
        with pytest.raises(moai.Error) as error:
            pair.decode.pull(handle, request)  # type: ignore[arg-type]
        assert error.value.field is not None and "handle" in error.value.field, handle
        with pytest.raises(moai.Error):
            moai.describe_handle(handle)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (moai.Request(100, [0, 1]), "request_pages"),
        (moai.Request(100, [0, 1, 2, 99]), "request_pages"),
        (moai.Request(100, [0, 1, 1, 2]), "request_pages"),
        (moai.Request(0, []), "tokens"),
        (moai.Request(100, OWN, held=101), "101"),
        (moai.Request(100, OWN, layers=range(0, 9)), "layers"),
        (moai.Request(100, OWN, layers=range(0)), "request.layers"),
        (moai.Request(100, OWN, layers=5), "request.layers"),  # type: ignore[arg-type]
        (moai.Request(-1, OWN), "request.tokens"),
        (moai.Request("100", OWN), "request.tokens"),  # type: ignore[arg-type]
        (moai.Request(1 << 32, OWN), "request.tokens"),
        (moai.Request(100, [0, 1, 2, -3]), "request.pages"),
        (moai.Request(100, [0, 1, 2, 1 << 32]), "request.pages"),
        (moai.Request(100, "0123"), "request.pages"),  # type: ignore[arg-type]
        (moai.Request(100, [0, 1, 2, 2.5]), "request.pages"),  # type: ignore[list-item]
        (moai.Request(100, None), "request.pages"),  # type: ignore[arg-type]
        (moai.Request(100, {"window": OWN}), "request.pages"),
        (moai.Request(100, {7: OWN}), "rank"),
        (moai.Request(100, OWN, digest="some"), "request.digest"),
        ({"tokens": 100}, "request"),
    ],
)
def test_requests_that_do_not_fit_name_the_field(pair: Pair, request_: Any, field: str) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
    with pytest.raises((moai.RequestError, moai.HandleError, moai.ArgumentError)) as error:
        pair.decode.pull(offer.handle, request_)
    assert field in f"{error.value.field} {error.value}"
    # And whatever else was asked of it before is not forgotten.
    pull(pair, offer).wait(LIMIT)


def test_pages_may_be_given_in_every_form(pair: Pair) -> None:
    for pages in [np.array(ITS), tuple(ITS), {0: ITS}, {"": ITS}, {0: {"": ITS}}]:
        offer = pair.prefill.offer(moai.Request(100, pages), lease=60)  # type: ignore[arg-type]
        pull(pair, offer).wait(LIMIT)
        assert equal(pair)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True])
def test_spans_of_time_that_are_none_are_refused(pair: Pair, seconds: Any) -> None:
    with pytest.raises(moai.ArgumentError) as error:
        pair.prefill.offer(moai.Request(100, ITS), lease=seconds)
    assert error.value.field == "lease"
    with pytest.raises(moai.ArgumentError) as error:
        pair.decode.next_event(seconds)
    assert error.value.field == "timeout"


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, None])
def test_what_is_kept_is_not_kept_for_ever(pair: Pair, seconds: Any) -> None:
    with pytest.raises(moai.ArgumentError) as error:
        pair.prefill.offer(moai.Request(100, ITS), lease=seconds)
    assert error.value.field == "lease"
    # But who waits may wait so long.
    assert pair.decode.next_event(seconds) is not None


def test_a_number_is_used_once(pair: Pair) -> None:
    first = pair.prefill.offer(moai.Request(100, ITS), lease=60, number=40)
    with pytest.raises(moai.RequestError):
        pair.prefill.offer(moai.Request(100, ITS), lease=60, number=40)
    assert pair.prefill.offer(moai.Request(100, ITS), lease=60).number == 41
    pull(pair, first).wait(LIMIT)


def test_many_threads_wait_at_once(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    transfer = pull(pair, offer)
    outcomes: list[moai.Outcome] = []

    threads = [threading.Thread(target=lambda: outcomes.append(transfer.wait(LIMIT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    offer.layer_ready(None, 100)
    for thread in threads:
        thread.join(LIMIT)
    assert len(outcomes) == 8 and all(outcome.committed for outcome in outcomes)


def test_waiters_hand_over_to_each_other(pair: Pair) -> None:
    """One takes events for all; when it has what it waited for, another goes on."""
    first = pair.prefill.offer(moai.Request(16, [0]), lease=60, progressive=True)
    second = pair.prefill.offer(moai.Request(16, [1]), lease=60, progressive=True)
    transfers = [
        pair.decode.pull(first.handle, moai.Request(16, [0]), deadline=LIMIT),
        pair.decode.pull(second.handle, moai.Request(16, [1]), deadline=LIMIT),
    ]
    done: list[int] = []

    def wait(transfer: moai.Transfer) -> None:
        transfer.wait(LIMIT)
        done.append(transfer.number)

    threads = [threading.Thread(target=wait, args=(transfer,)) for transfer in transfers]
    for thread in threads:
        thread.start()
    first.layer_ready(None, 16)
    threads[0].join(LIMIT)
    second.layer_ready(None, 16)
    threads[1].join(LIMIT)
    assert done == [transfer.number for transfer in transfers]


def test_closing_wakes_who_waits(pair: Pair) -> None:
    offer = pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=True)
    transfer = pull(pair, offer)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            transfer.wait(LIMIT)
        except moai.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    pair.decode.close()
    for thread in threads:
        thread.join(LIMIT)
    assert [type(error) for error in errors] == [moai.ClosedError] * 3
    assert "decode" in str(errors[0])


def test_a_closed_engine_is_of_no_use_and_frees_its_memory() -> None:
    buffers = [bytearray(region.bytes) for region in moai.Descriptor(PREFILL).regions(0)]
    with moai.Engine("alone", PREFILL, [moai.Memory.from_buffer(buffer) for buffer in buffers]) as engine:
        gc.collect()
        with pytest.raises(BufferError):
            buffers[0].append(1)  # the engine has it
        offer = engine.offer(moai.Request(100, ITS), lease=60)
    assert engine.closed and "closed" in repr(engine)
    engine.close()
    gc.collect()
    buffers[0].append(1)
    uses: list[Callable[[], Any]] = [
        engine.poll,
        engine.stats,
        engine.metrics,
        engine.fileno,
        engine.events,
        offer.withdraw,
        lambda: engine.next_event(0),
        lambda: engine.offer(moai.Request(100, ITS), lease=60),
        lambda: engine.pull(offer.handle, moai.Request(100, ITS)),
        lambda: engine.know("x", []),
        offer.wait_released,
    ]
    for use in uses:
        with pytest.raises(moai.ClosedError):
            use()
    # Its regions are another engine's now.
    memory = memory_for(moai.Descriptor(PREFILL))
    for name in ("one", "two"):
        with moai.Engine(name, PREFILL, memory):
            pass


def test_an_engine_that_nobody_has_ends() -> None:
    memory = memory_for(moai.Descriptor(PREFILL))
    engine = moai.Engine("alone", PREFILL, memory)
    offer = engine.offer(moai.Request(100, ITS), lease=60)
    alive = weakref.ref(engine)
    del engine, offer
    gc.collect()
    assert alive() is None
    moai.Engine("again", PREFILL, memory).close()


def test_memory_has_one_engine() -> None:
    memory = memory_for(moai.Descriptor(PREFILL))
    with moai.Engine("one", PREFILL, memory), pytest.raises(moai.InUseError):
        moai.Engine("two", PREFILL, memory)


def region(bytes_: int) -> moai.Memory:
    return moai.Memory.allocate(bytes_, "host")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": 5}, "name"),
        ({"memory": []}, "memory[0]"),
        ({"memory": None}, "memory[0]"),
        ({"memory": {1: []}}, "memory"),
        ({"memory": [bytearray(9), bytearray(9)]}, "memory[0][0]"),
        ({"memory": [region(9), region(9)]}, "memory[0][0]"),
        ({"memory": region(9)}, "memory[0]"),
        ({"ranks": [5], "memory": {5: []}}, "rank"),
        ({"ranks": []}, "memory"),
        ({"key": b"short"}, "key"),
        ({"key": "text" * 8}, "key"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": -1}, "epoch"),
        ({"node": -1}, "node"),
        ({"loss": -1}, "loss"),
        ({"heartbeat": "often"}, "heartbeat"),
        ({"produces": False, "consumes": False}, "consumes"),
        ({"config": {"bnid": "x"}}, "MOAI_BNID"),
        ({"config": {"bind": "0.0.0.0:0"}}, ""),
        ({"descriptor": {}}, ""),
        ({"descriptor": 5}, ""),
    ],
)
def test_engines_that_cannot_be_name_the_field(change: dict[str, Any], field: str) -> None:
    side = moai.Descriptor(PREFILL)
    arguments: dict[str, Any] = {"name": "alone", "descriptor": side, "memory": memory_for(side), **change}
    with pytest.raises(moai.Error) as error:
        moai.Engine(**arguments)
    assert field in f"{error.value.field} {error.value}"


def test_nodes_that_cannot_be_name_the_field(pair: Pair) -> None:
    for nodes, field in [
        ([moai.Node(0, (0,), ("pigeon",))], "address"),
        ([moai.Node(-1, (0,), ())], "nodes[0].number"),
        ([moai.Node(0, ("x",), ())], "nodes[0].ranks[0]"),  # type: ignore[arg-type]
        ([moai.Node(0, (0,), (5,))], "nodes[0].addresses[0]"),  # type: ignore[arg-type]
        ([("127.0.0.1", 5)], "nodes[0]"),
    ]:
        with pytest.raises(moai.Error) as error:
            pair.decode.know("other", nodes)  # type: ignore[arg-type]
        assert field in f"{error.value.field} {error.value}", nodes


def test_sides_that_do_not_fit_are_told_of_both() -> None:
    other = {**DECODE, "components": [{**component, "dim": 32} for component in DECODE["components"]]}
    own = moai.Descriptor(other)
    its = moai.Descriptor(PREFILL)
    with moai.Engine("prefill", its, memory_for(its)) as prefill, moai.Engine("decode", own, memory_for(own)) as decode:
        decode.know("prefill", [moai.Node(0, (0,), prefill.addresses)])
        offer = prefill.offer(moai.Request(100, ITS), lease=60)
        with pytest.raises(moai.Error) as error:
            decode.pull(offer.handle, moai.Request(100, OWN), deadline=3).wait(LIMIT)
        assert "dim" in str(error.value)


def test_the_number_of_events_that_are_kept_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import deque

    monkeypatch.setattr("moai_fabric.engine.MOST_EVENTS", 3)
    monkeypatch.setattr(pair.prefill, "_events", deque(maxlen=3))
    for _ in range(10):
        offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
        offer.withdraw()
        offer.wait_released(LIMIT)
    assert len(pair.prefill.events()) == 3 and pair.prefill.missed_events >= 7


def test_a_page_that_is_reused_is_not_taken_for_what_was_offered() -> None:
    its, own = moai.Descriptor(PREFILL), moai.Descriptor(DECODE)
    with moai.Engine("prefill", its, memory_for(its), counts_reuse=True) as prefill, moai.Engine("decode", own, memory_for(own)) as decode:
        decode.know("prefill", [moai.Node(0, (0,), prefill.addresses)])
        offer = prefill.offer(moai.Request(100, ITS), lease=60)
        prefill.reuse(0, ITS[0])
        with pytest.raises(moai.TransferFailed) as error:
            decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT).wait(LIMIT)
        assert error.value.outcome is not None and error.value.outcome.reason == "reused"


def test_one_engine_after_another_leaves_no_descriptors_or_threads() -> None:
    import os

    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    with start_pair("tcp"):
        pass
    gc.collect()
    before = count()
    for _ in range(5):
        with start_pair("tcp") as pair:
            offer = pair.prefill.offer(moai.Request(100, ITS), lease=60)
            pull(pair, offer).wait(LIMIT)
    gc.collect()
    assert count() == before


def test_filling_is_seeded() -> None:
    """What the other tests compare is not all zero, and not all the same."""
    memory = memory_for(moai.Descriptor(PREFILL))
    fill(memory, 7)
    rows = prefill_rows(memory, ITS, 100)
    assert len(np.unique(rows)) > 1000
