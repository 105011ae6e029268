#!/usr/bin/env python3
"""One shape moved by Mooncake's transfer engine over TCP between two processes of this machine: rows as moai-perf
writes them. Its batches fail from some thousand pieces on with default settings, so they have at most --batch.
Latency is one synchronous write of 256 B."""

import argparse
import json
import os
import subprocess
import sys
import time

import transport_data as data


def engine():
    from mooncake.engine import TransferEngine

    made = TransferEngine()
    if code := made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
        sys.exit(f"the engine does not start: {code}")
    return made


def target(options):
    me = engine()
    size = options.piece * options.pieces
    array, address = data.memory(size)
    if me.register_memory(address, size):
        sys.exit("memory cannot be registered")
    orders = [data.order(options.pieces, side) for side in (0, 1)]
    answer = lambda value: print("\n@" + json.dumps(value), flush=True)
    answer([f"127.0.0.1:{me.get_rpc_port()}", address])
    for line in sys.stdin:
        call, salt = line.split()
        if call == "fill":
            data.fill(array, int(salt))
            answer(0)
        else:
            answer(data.check(array, options.piece, *orders, int(salt)))
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="mooncake", help="what rows call it")
    parser.add_argument("--piece", type=int, required=True)
    parser.add_argument("--pieces", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pings", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    if options.target:
        return target(options)
    piece, pieces = options.piece, options.pieces
    other = subprocess.Popen(
        [sys.executable, __file__, "--target", "--piece", str(piece), "--pieces", str(pieces)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer():
        # Its log goes to stdout as well.
        for line in other.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        sys.exit("the target is gone")

    def ask(call, salt):
        print(call, salt, file=other.stdin, flush=True)
        return answer()

    peer, remote = answer()
    me = engine()
    array, address = data.memory(piece * pieces)
    if me.register_memory(address, piece * pieces):
        sys.exit("memory cannot be registered")
    here, there = (data.order(pieces, side) for side in (0, 1))
    local, far = ([base + int(slot) * piece for slot in slots] for base, slots in [(address, here), (remote, there)])
    batches = [
        (local[n : n + options.batch], far[n : n + options.batch], [piece] * min(options.batch, pieces - n))
        for n in range(0, pieces, options.batch)
    ]
    for move, name in [(me.batch_transfer_sync_write, "put"), (me.batch_transfer_sync_read, "get")]:
        times = []
        for salt in range(1 << 50, (1 << 50) + options.rounds + 1):
            data.fill(array, salt) if name == "put" else ask("fill", salt)
            start = time.perf_counter()
            for batch in batches:
                if code := move(peer, *batch):
                    sys.exit(f"a batch of {len(batch[0])} failed: {code}")
            times.append(time.perf_counter() - start)
            wrong = ask("check", salt) if name == "put" else data.check(array, piece, there, here, salt)
            if wrong:
                sys.exit(f"{wrong} of {pieces} pieces differ after a {name}")
        data.emit(name, options.name, piece, pieces, times[1:])
    if options.pings:

        def once():
            if code := me.transfer_sync_write(peer, address, remote, piece):
                sys.exit(f"a write failed: {code}")

        data.emit("latency", options.name, piece, options.pings, latencies=data.ping(once, options.pings))
    other.stdin.close()
    other.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
