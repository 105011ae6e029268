#!/usr/bin/env python3
"""Pieces moved between two processes of this machine by moai-perf and by its peers, in turns.

Each turn goes through all shapes; each shape through all that move it, one after the other, in an order that turns
round each time. Each of them starts two processes of its own, warms up, moves the shape --rounds times in each
direction, and checks its data. Ratios are taken within a turn; their median over all turns counts, the least and the
greatest are its spread. GB/s are 10^9 bytes that arrived a second.

NIXL and Mooncake move the same scattered pieces. UCX and libfabric, where they are installed, are measured by their
own programs, which send one buffer again and again: what they reach is above what they would with pieces.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
# Bytes of a piece, and how many of them.
SHAPES = [(256, 65536), (4096, 16384), (65536, 4096), (1 << 20, 512)]
# The piece that latency is taken of.
PING = 256
LIMIT_S = 120


def run(command, **environment):
    """What a command writes to stdout, or None after telling why there is nothing."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return tell(command, f"nothing after {LIMIT_S} s")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return tell(command, said[-1] if said else f"exit code {done.returncode}")
    return done.stdout


told = set()


def tell(command, text):
    """Says once for each program and reason why there are no figures."""
    line = f"{pathlib.Path(command[0]).name} {' '.join(map(str, command[1:4]))}: {text}"
    if line not in told:
        told.add(line)
        print(f"  no figures: {line}", file=sys.stderr, flush=True)


class Moai:
    """moai-perf over one transport."""

    def __init__(self, program, transport, options):
        self.program, self.transport, self.options = program, transport, options
        self.name = f"moai {transport}"
        self.machine = None

    def rows(self, piece, pieces, pings):
        rows = []
        ops = [("put", pieces), ("get", pieces)] + ([("latency", pings)] if pings else [])
        for op, number in ops:
            with tempfile.TemporaryDirectory() as folder:
                out = pathlib.Path(folder) / "rows"
                common = ["--transport", self.transport, "--json", out, "--rounds", self.options.rounds]
                shape = ["--piece", piece, "--pieces", number, "--lanes", self.options.lanes]
                # The peers poll without a pause while they wait, so for their latency we do as well.
                spin = ["--spin", 1000] if op == "latency" else []
                if run([self.program, op, *common, *shape, *spin]) is None:
                    continue
                read = [json.loads(line) for line in out.read_text().splitlines()]
                self.machine = read[0]
                rows += [row for row in read if row["kind"] == "transport"]
        return rows


class Worker:
    """A peer that has a program here: it writes rows as moai-perf does."""

    def __init__(self, name, program, options, *words):
        self.name, self.options = name, options
        self.command = [sys.executable, HERE / program, *words]

    def rows(self, piece, pieces, pings):
        shape = ["--piece", piece, "--pieces", pieces, "--pings", pings, "--rounds", self.options.rounds]
        out = run([*self.command, *shape])
        return [json.loads(line) for line in (out or "").splitlines() if line.startswith("{")]


class Pair:
    """A peer whose own program is started twice, as a server and as a client."""

    def measure(self, words, **environment):
        environment = os.environ | environment
        words = [str(word) for word in words]
        server = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # It does not say when it listens.
            time.sleep(0.5)
            out = run([*words, "127.0.0.1"], **environment)
            return [line.split() for line in (out or "").splitlines()]
        finally:
            server.kill()
            server.wait()


class Ucx(Pair):
    def __init__(self, name, tls):
        self.name, self.tls = name, tls

    def final(self, test, piece, number):
        words = ["ucx_perftest", "-t", test, "-s", piece, "-n", number, "-w", number // 10 + 1, "-p", 13400]
        out = self.measure(words, UCX_TLS=self.tls, UCX_NET_DEVICES="lo", UCX_LOG_LEVEL="error")
        return next((line for line in out if line and line[0] == "Final:"), None)

    def rows(self, piece, pieces, pings):
        rows = []
        # What it does with puts depends on the network, so messages are tried as well; the better one counts.
        lines = [self.final(test, piece, pieces) for test in ("ucp_put_bw", "tag_bw")]
        if found := [float(line[6]) * (1 << 20) / 1e9 for line in lines if line]:
            rows.append({"op": "put", "gb_s": max(found), "pieces_s": max(found) * 1e9 / piece})
        lines = [self.final(test, piece, pings) for test in ("ucp_put_lat", "tag_lat")] if pings else []
        # It tells half of a round trip.
        if found := [2e3 * float(line[2]) for line in lines if line]:
            rows.append({"op": "latency", "p50_ns": min(found)})
        return rows


class Libfabric(Pair):
    def __init__(self, name, provider, endpoint):
        self.name, self.provider, self.endpoint = name, provider, endpoint

    def rows(self, piece, pieces, pings):
        rows = []
        for op, number in [("put", min(pieces, 4096)), ("latency", pings)]:
            if not number:
                continue
            words = ["fi_pingpong", "-p", self.provider, "-e", self.endpoint, "-I", number, "-S", piece]
            lines = self.measure(words, FI_TCP_IFACE="lo")
            line = next((line for line in lines if len(line) == 8 and line[0] != "bytes"), None)
            if line and op == "put":
                rows.append({"op": op, "gb_s": float(line[5]) / 1e3, "pieces_s": float(line[5]) * 1e6 / piece})
            elif line:
                rows.append({"op": op, "p50_ns": 2e3 * float(line[6])})
        return rows


def contenders(options):
    """For each of our transports, what it is held against: of the same kind, and there."""
    tcp = [
        Worker("NIXL tcp", "transport_nixl.py", options, "--tls", "tcp"),
        Worker("Mooncake tcp", "transport_mooncake.py", options),
    ]
    # Memory of ours comes in huge pages; a peer moves what its user allocates, so it is measured with both.
    local = [
        Worker("NIXL cma", "transport_nixl.py", options, "--tls", "default"),
        Worker("NIXL cma, huge pages", "transport_nixl.py", options, "--tls", "default", "--huge"),
    ]
    if options.with_threads:
        tcp.append(Worker("NIXL tcp, threads", "transport_nixl.py", options, "--tls", "tcp", "--pthread", "both"))
        local.append(Worker("NIXL cma, threads", "transport_nixl.py", options, "--pthread", "both"))
    if shutil.which("ucx_perftest"):
        tcp.append(Ucx("UCX tcp, one buffer", "tcp,self"))
        local.append(Ucx("UCX posix+cma, one buffer", "posix,cma,self"))
    if shutil.which("fi_pingpong"):
        tcp.append(Libfabric("libfabric tcp, ping-pong", "tcp", "msg"))
        local.append(Libfabric("libfabric shm, ping-pong", "shm", "rdm"))
    held = []
    for transport in options.ours:
        peers = local if transport == "shm" else tcp
        held.append((Moai(options.moai, transport, options), [peer for peer in peers if wanted(peer, options)]))
    return held


def wanted(peer, options):
    return not options.peers or any(word.lower() in peer.name.lower() for word in options.peers)


def versions():
    found = []
    for package in ("nixl-cu12", "mooncake-transfer-engine-non-cuda", "numpy"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    for name, command in [("UCX", ["ucx_info", "-v"]), ("libfabric", ["fi_info", "--version"])]:
        if shutil.which(command[0]):
            words = (run(command) or "").split()
            number = next((word for word in words if word[0].isdigit()), "of unknown version")
            found.append(f"{name} {number}")
    return found


def speed(row):
    """The figure that counts, the larger the better."""
    return row["gb_s"] if "gb_s" in row else 1e9 / row["p50_ns"]


def figure(op, speeds):
    """The median for people."""
    middle = statistics.median(speeds)
    return f"{1e6 / middle:.1f} µs" if op == "latency" else f"{middle:.3g} GB/s"


def measure(held, shapes, options):
    """Speeds of every turn, by shape, operation and name."""
    speeds = {}
    movers = list({mover.name: mover for ours, peers in held for mover in [ours, *peers]}.values())
    for turn in range(options.turns):
        for piece, pieces in shapes:
            for mover in movers if turn % 2 == 0 else reversed(movers):
                pings = options.pings if piece == PING else 0
                for row in mover.rows(piece, pieces, pings):
                    key = (piece, pieces, row["op"])
                    speeds.setdefault(key, {}).setdefault(mover.name, {})[turn] = speed(row)
                    if options.lines:
                        line = {**row, "kind": "peer", "transport": mover.name, "piece": piece, "turn": turn}
                        print(json.dumps(line), file=options.lines, flush=True)
            print(f"  turn {turn + 1} of {options.turns}: {pieces} pieces of {piece} B", file=sys.stderr, flush=True)
    return speeds


def compared(held, speeds):
    """Rows of the table: every peer with what we reach on the same shape."""
    for (piece, pieces, op), found in sorted(speeds.items(), key=lambda item: (item[0][2], item[0][0])):
        for ours, peers in held:
            for peer in peers:
                mine, its = found.get(ours.name, {}), found.get(peer.name, {})
                if not its:
                    continue
                ratios = [mine[turn] / its[turn] for turn in its if turn in mine]
                us = figure(op, mine.values()) if mine else "–"
                spread = "–"
                if ratios:
                    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                shape = f"1 × {piece}" if op == "latency" else f"{pieces} × {piece}"
                yield [op, shape, peer.name, figure(op, its.values()), ours.name, us, spread]


def markdown(rows):
    heads = ["operation", "pieces × B", "peer", "it reaches", "ours", "we reach", "ours / it (spread)"]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def machine(held):
    """The machine and the build as moai-perf tells them, or as much as can be seen without it."""
    for ours, _ in held:
        if told := ours.machine:
            return (
                f"{told['cpu']}, {told['cores']} cores, Linux {told['kernel']}",
                f"moai-perf {told['version']}, {told['build']}, commit {told['commit']}",
            )
    return f"{os.cpu_count()} cores, Linux {os.uname().release}", "moai-perf gave no figures"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moai", required=True, help="the program moai-perf")
    parser.add_argument("--ours", nargs="+", default=["tcp", "shm"], choices=["tcp", "shm", "raw"])
    parser.add_argument("--peers", nargs="+", default=[], metavar="WORD", help="only those whose name has the word")
    parser.add_argument("--pieces", nargs="+", type=int, metavar="BYTES", help="only shapes with pieces of that size")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each turn")
    parser.add_argument("--pings", type=int, default=2000, help="single operations of each turn, for latency")
    parser.add_argument("--lanes", type=int, default=4, help="as moai-perf's")
    parser.add_argument("--with-threads", action="store_true", help="NIXL with its progress threads as well")
    parser.add_argument("--json", type=argparse.FileType("w"), dest="lines", help="write every row as JSON lines")
    parser.add_argument("--markdown", default="target/peers-transport.md", help="where the table goes")
    options = parser.parse_args()
    held = contenders(options)
    shapes = [shape for shape in SHAPES if not options.pieces or shape[0] in options.pieces]
    speeds = measure(held, shapes, options)
    table = markdown(compared(held, speeds))
    where, build = machine(held)
    # Whoever reads it wants the command, not where this checkout has its programs.
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and word != "--moai":
            words.append(word)
        skip = word == "--moai"
    command = " ".join(["bash perf/peers/transport.sh", *words])
    text = (
        f"`{command}`\n\n{where}; {build}; {', '.join(versions())}. Medians of {options.turns} turns of "
        f"{options.rounds} rounds. Latency: ours is a message there and one back, NIXL's and Mooncake's one write "
        f"from posting to done, UCX's and libfabric's a message there and one back.\n\n{table}"
    )
    pathlib.Path(options.markdown).write_text(text)
    print(text)
    return 0 if speeds else 1


if __name__ == "__main__":
    sys.exit(main())
