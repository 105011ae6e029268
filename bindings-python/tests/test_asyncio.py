"""Waiting in event loops."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest
from caches import decode_rows, prefill_rows
from conftest import LIMIT, Pair

import moai_fabric as moai
from moai_fabric import events

ITS, OWN = [5, 0, 7, 1, 2, 3, 4], [3, 1, 0, 6]


def offer_of(pair: Pair, progressive: bool = False) -> moai.Offer:
    return pair.prefill.offer(moai.Request(100, ITS), lease=60, progressive=progressive)


def test_a_transfer_is_awaited(pair: Pair) -> None:
    async def move() -> moai.Outcome:
        offer = offer_of(pair)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        outcome = await transfer
        released = await offer.wait_released_async(LIMIT)
        assert released.reason == "consumed"
        assert await transfer is outcome  # again, at once
        return outcome

    assert asyncio.run(move()).committed
    assert np.array_equal(decode_rows(pair.own, OWN, 100), prefill_rows(pair.its, ITS, 100))


def test_other_tasks_run_meanwhile_and_many_wait_at_once(pair: Pair) -> None:
    async def move() -> int:
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT, by_layer=True)
        waiting = [asyncio.ensure_future(transfer.wait_async(LIMIT)) for _ in range(10)]
        layer = asyncio.ensure_future(transfer.wait_layer_async(1, LIMIT))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.001)
            ticks += 1
        assert not layer.done()
        offer.layer_ready(1, 100)
        await layer
        assert not any(task.done() for task in waiting)
        offer.layer_ready(0, 100)
        outcomes = await asyncio.gather(*waiting)
        return sum(outcome.committed for outcome in outcomes)

    assert asyncio.run(move()) == 10


def test_a_wait_that_is_over_leaves_the_transfer_alone(pair: Pair) -> None:
    async def move() -> None:
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        with pytest.raises(TimeoutError):
            await transfer.wait_async(0.05)
        task = asyncio.ensure_future(transfer.wait_async())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not transfer.done
        offer.layer_ready(None, 100)
        assert (await transfer).committed

    asyncio.run(move())


def test_a_failure_is_raised_where_it_is_awaited(pair: Pair) -> None:
    async def move() -> None:
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        asyncio.get_running_loop().call_later(0.05, transfer.cancel)
        with pytest.raises(moai.TransferCancelled):
            await transfer
        grant = pair.decode.grant(moai.Request(100, OWN), lease=0.1)
        with pytest.raises(moai.TransferFailed):
            await grant.wait_invited_async(LIMIT)

    asyncio.run(move())


def test_closing_wakes_a_task(pair: Pair) -> None:
    async def move() -> None:
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        asyncio.get_running_loop().call_later(0.05, pair.decode.close)
        with pytest.raises(moai.ClosedError):
            await transfer

    asyncio.run(move())


def test_loops_and_threads_wait_for_one_engine(pair: Pair) -> None:
    """Many times, since what they do at the same instant matters."""
    for _ in range(20):
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        committed: list[bool] = []

        def loop(transfer: moai.Transfer = transfer, committed: list[bool] = committed) -> None:
            committed.append(asyncio.run(transfer.wait_async(LIMIT)).committed)

        def thread(transfer: moai.Transfer = transfer, committed: list[bool] = committed) -> None:
            committed.append(transfer.wait(LIMIT).committed)

        threads = [threading.Thread(target=target) for target in (loop, thread, loop, thread)]
        for one in threads:
            one.start()
        offer.layer_ready(None, 100)
        for one in threads:
            one.join(5)
        assert committed == [True] * 4


def test_events_are_awaited_and_the_descriptor_can_be_watched(pair: Pair) -> None:
    async def watch() -> None:
        event = await pair.decode.next_event_async(LIMIT)
        assert isinstance(event, events.PeerUp) and event.engine == "prefill"
        assert await pair.decode.next_event_async(0.01) is None
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pair.decode.fileno(), readable.set)
        transfer = pair.decode.pull(offer_of(pair).handle, moai.Request(100, OWN), deadline=LIMIT)
        await asyncio.wait_for(readable.wait(), LIMIT)
        loop.remove_reader(pair.decode.fileno())
        while not transfer.done:
            pair.decode.poll()
            await asyncio.sleep(0.001)

    asyncio.run(watch())


def test_an_idle_wait_costs_no_processor_and_leaves_nothing(pair: Pair) -> None:
    async def idle() -> float:
        offer = offer_of(pair, progressive=True)
        transfer = pair.decode.pull(offer.handle, moai.Request(100, OWN), deadline=LIMIT)
        await asyncio.sleep(0.2)
        before = sum(os.times()[:2])
        with pytest.raises(TimeoutError):
            await transfer.wait_async(1.0)
        spent = sum(os.times()[:2]) - before
        offer.layer_ready(None, 100)
        await transfer
        return spent

    pair.decode.next_event(LIMIT)  # the link has its descriptors
    descriptors = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(idle()) < 0.5, "half a second of processor for a second of waiting"
    assert len(os.listdir("/proc/self/fd")) == descriptors
