"""Engines for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from caches import DECODE, PREFILL, fill, memory_for

import moai_fabric as moai

LIMIT = 20.0
"""Longer than anything takes that is to happen."""


@dataclass
class Pair:
    """A producer and a consumer that know each other."""

    prefill: moai.Engine
    decode: moai.Engine
    its: list[moai.Memory]
    own: list[moai.Memory]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Over sockets."""
    with start_pair("tcp") as made:
        yield made


@pytest.fixture(params=["tcp", "shm"])
def pair_each_way(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Over sockets, then through shared memory."""
    with start_pair(request.param) as made:
        yield made


class start_pair:
    def __init__(self, way: str) -> None:
        self.way = way
        self.stack = ExitStack()

    def __enter__(self) -> Pair:
        config = {"transports": self.way}
        kind = "shared" if self.way == "shm" else "host"
        its, own = moai.Descriptor(PREFILL), moai.Descriptor(DECODE)
        its_memory, own_memory = memory_for(its, kind), memory_for(own, kind)
        fill(its_memory, 7)
        prefill = self.stack.enter_context(moai.Engine("prefill", its, its_memory, config))
        decode = self.stack.enter_context(moai.Engine("decode", own, own_memory, config))
        decode.know("prefill", [moai.Node(0, (0,), prefill.addresses)])
        return Pair(prefill, decode, its_memory, own_memory)

    def __exit__(self, *raised: object) -> None:
        self.stack.close()
