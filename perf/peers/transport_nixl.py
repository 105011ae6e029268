#!/usr/bin/env python3
"""One shape moved by NIXL between two processes of this machine, DRAM to DRAM: rows as moai-perf writes them.

The time is from making the transfer of prepared lists to its being done; preparing the lists does not count.
Without its progress threads, which cost NIXL about half on few cores, the target makes progress itself. Latency
is one write of 256 B, from posting to done, of a transfer that is made once."""

import argparse
import multiprocessing
import os
import sys
import time


def environment(tls):
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    if tls != "default":
        os.environ["UCX_TLS"] = tls
    if tls == "tcp":
        os.environ.setdefault("UCX_NET_DEVICES", "lo")


def agent(name, options):
    import logging

    logging.disable(logging.WARNING)
    from nixl_cu12 import _api as nixl

    threads = options.pthread in ("both", name)
    made = nixl.nixl_agent(name, nixl.nixl_agent_config(enable_prog_thread=threads, backends=[]))
    made.create_backend("UCX", {})
    return made


def target(pipe, options):
    environment(options.tls)
    import transport_data as data

    me = agent("target", options)
    size = options.piece * options.pieces
    array, address = data.memory(size, options.huge)
    me.register_memory([(address, size, 0, "")], "DRAM")
    pipe.send((me.get_agent_metadata(), address))
    orders = [data.order(options.pieces, side) for side in (0, 1)]
    while True:
        if options.pthread not in ("both", "target"):
            while not pipe.poll(0):
                me.get_new_notifs()
        call, value = pipe.recv()
        if call == "meet":
            me.add_remote_agent(value)
            pipe.send(None)
        elif call == "fill":
            data.fill(array, value)
            pipe.send(None)
        elif call == "check":
            pipe.send(data.check(array, options.piece, *orders, value))
        else:
            pipe.send(None)
            pipe.close()
            # Its libraries do not survive an orderly exit.
            os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", default="default", help="UCX_TLS, or what UCX takes by itself")
    parser.add_argument("--pthread", default="none", choices=["both", "init", "target", "none"])
    parser.add_argument("--huge", action="store_true", help="memory in huge pages")
    parser.add_argument("--name", default="nixl", help="what rows call it")
    parser.add_argument("--piece", type=int, required=True)
    parser.add_argument("--pieces", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pings", type=int, default=0)
    options = parser.parse_args()
    environment(options.tls)
    import numpy as np
    import transport_data as data

    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    context.Process(target=target, args=(other, options), daemon=True).start()

    def ask(call, value=None):
        pipe.send((call, value))
        return pipe.recv()

    me = agent("init", options)
    piece, pieces = options.piece, options.pieces
    array, address = data.memory(piece * pieces, options.huge)
    me.register_memory([(address, piece * pieces, 0, "")], "DRAM")
    metadata, remote = pipe.recv()
    ask("meet", me.get_agent_metadata())
    peer = me.add_remote_agent(metadata)
    me.make_connection(peer)

    def listed(base, slots):
        list_ = np.zeros((len(slots), 3), dtype=np.uint64)
        list_[:, 0] = np.uint64(base) + slots.astype(np.uint64) * np.uint64(piece)
        list_[:, 1] = piece
        return list_

    def done(handle):
        state = me.transfer(handle)
        while state == "PROC":
            state = me.check_xfer_state(handle)
        if state != "DONE":
            sys.exit(f"a transfer ended as {state}")

    here, there = (data.order(pieces, side) for side in (0, 1))
    local = me.prep_xfer_dlist("NIXL_INIT_AGENT", listed(address, here), "DRAM")
    far = me.prep_xfer_dlist(peer, listed(remote, there), "DRAM")
    every = np.arange(pieces, dtype=np.int32)
    for op, name in [("WRITE", "put"), ("READ", "get")]:
        times = []
        for salt in range(1 << 50, (1 << 50) + options.rounds + 1):
            data.fill(array, salt) if op == "WRITE" else ask("fill", salt)
            start = time.perf_counter()
            handle = me.make_prepped_xfer(op, local, every, far, every)
            done(handle)
            times.append(time.perf_counter() - start)
            me.release_xfer_handle(handle)
            wrong = ask("check", salt) if op == "WRITE" else data.check(array, piece, there, here, salt)
            if wrong:
                sys.exit(f"{wrong} of {pieces} pieces differ after a {name}")
        data.emit(name, options.name, piece, pieces, times[1:])
    if options.pings:
        handle = me.make_prepped_xfer("WRITE", local, [0], far, [0])
        data.emit("latency", options.name, piece, options.pings, latencies=data.ping(lambda: done(handle), options.pings))
    ask("quit")
    os._exit(0)


if __name__ == "__main__":
    main()
