"""A producer in a process of its own: offers a request, tells where, and says how it was released."""

from __future__ import annotations

import json
import sys

from caches import PREFILL, fill, memory_for

import moai_fabric as moai


def main() -> None:
    transports, seed = sys.argv[1], int(sys.argv[2])
    side = moai.Descriptor(PREFILL)
    memory = memory_for(side, "shared" if transports == "shm" else "host")
    fill(memory, seed)
    with moai.Engine("prefill", side, memory, {"transports": transports}) as engine:
        offer = engine.offer(moai.Request(100, [5, 0, 7, 1, 2, 3, 4]), lease=60)
        print(json.dumps({"addresses": engine.addresses, "handle": offer.handle}), flush=True)
        print(offer.wait_released(60).reason, flush=True)


if __name__ == "__main__":
    main()
