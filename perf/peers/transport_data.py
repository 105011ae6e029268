"""Memory, order and content of the pieces that peers move, as moai-perf has them: every eight bytes tell where they
are and in which round they were written, each side has an order of its own, and the receiver checks all of them."""

import json
import mmap
import time

import numpy as np

# Eight-byte words made or compared at a time.
BLOCK = 1 << 20


def memory(size, huge=False):
    """Private memory with all its pages there, and the address it begins at."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, dtype=np.uint8)
    array[:] = 0
    return array, array.ctypes.data


def order(pieces, side):
    """Slots in which the pieces of a side (0 or 1) lie."""
    return np.random.default_rng(1 + side).permutation(pieces)


def words(index, salt):
    return (index ^ np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)


def fill(array, salt):
    view = array.view(np.uint64)
    for start in range(0, len(view), BLOCK):
        part = view[start : start + BLOCK]
        part[:] = words(np.arange(start, start + len(part), dtype=np.uint64), salt)


def check(target, piece, source_order, target_order, salt):
    """Number of pieces that are not what the source was filled with."""
    each = piece // 8
    view = target[: len(target_order) * piece].view(np.uint64).reshape(-1, each)
    within = np.arange(each, dtype=np.uint64)
    wrong, step = 0, max(1, BLOCK // each)
    for start in range(0, len(target_order), step):
        first = source_order[start : start + step].astype(np.uint64) * np.uint64(each)
        expected = words(first[:, None] + within, salt)
        wrong += int((view[target_order[start : start + step]] != expected).any(axis=1).sum())
    return wrong


def emit(op, transport, piece, pieces, times=None, latencies=None):
    """A row as moai-perf writes it, on stdout."""
    row = {"kind": "transport", "op": op, "transport": transport, "piece": piece, "pieces": pieces}
    if times:
        median = float(np.median(times))
        row |= {"rounds": len(times), "gb_s": piece * pieces / median / 1e9, "pieces_s": pieces / median}
        row |= {"least_gb_s": piece * pieces / max(times) / 1e9, "most_gb_s": piece * pieces / min(times) / 1e9}
    if latencies:
        for name, percent in [("p50_ns", 50), ("p99_ns", 99), ("max_ns", 100)]:
            row[name] = float(np.percentile(latencies, percent)) * 1e9
    print(json.dumps(row), flush=True)


def ping(once, count, seconds=2.0):
    """Times of `count` calls after a tenth as many that warm up, or of as many as `seconds` are enough for."""
    times, end = [], time.perf_counter() + seconds
    for n in range(count + count // 10):
        start = time.perf_counter()
        once()
        now = time.perf_counter()
        if n >= count // 10:
            times.append(now - start)
        if now > end and times:
            break
    return times
