"""Parity: what D says of prompts that P has computed, against what one engine says that does both."""

import math
import re
import time
from dataclasses import dataclass, field

from fleet import PREFILL, Baselines, Fleet, connector, prompt

MAX_TOKENS = 24

# Divergences of the control with zeros, by pair: it runs before what is held against it.
ZEROED: dict[str, list[float]] = {}


@dataclass
class Pair:
    """Two engines that may be unlike, and what must hold of them."""

    name: str
    groups: tuple[str, ...]
    says: str
    model: str = "llama-kv4"
    both: dict = field(default_factory=dict)
    p: dict = field(default_factory=dict)
    d: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    lengths: tuple[int, ...] = (5, 70, 200, 300)
    # "exact": tokens and logprobs are equal. "tokens": tokens are, logprobs to `within`. "noise": `first` is compared.
    # "bytes": rows of the cache are equal.
    must: str = "exact"
    within: float = 0.0
    ways: tuple[str, ...] = ("tcp", "shm", "nixl")
    # Of "noise": what single engines of the other format are. Over all prompts D's divergence from one engine is at most
    # `noise` times that of the two formats from each other, and for every prompt an engine with zeros for a cache diverges by more
    # than `margin` times as much as D.
    other: dict = field(default_factory=dict)
    noise: float = 1.5
    margin: float = 100.0


def run(pair: Pair, way: str, baselines: Baselines) -> dict:
    """One case over one way; `holds` says whether what must hold does, and is None where nothing must."""
    result = {"name": f"{pair.name}/{way}", "pair": pair.name, "way": way, "must": pair.must}
    start = time.monotonic()
    kind = "nixl" if way == "nixl" else "moai"
    extra = None if kind == "nixl" else {"transports": way, **pair.extra}
    logprobs = -1 if pair.must == "noise" else 1
    max_tokens = 1 if pair.must in ("noise", "bytes") else MAX_TOKENS
    d_options, p_options = {**pair.both, **pair.d}, {**pair.both, **pair.p}
    base = baselines.of(pair.model, list(pair.lengths), max_tokens, logprobs, **d_options)
    if pair.must == "noise":
        other = baselines.of(pair.model, list(pair.lengths), max_tokens, logprobs, **{**pair.both, **pair.other})
        result["noise"] = [divergence(a["first"], b["first"]) for a, b in zip(base, other)]
    consumer = "controls.ZeroedConnector" if way == "zeroed" else kind
    if way == "zeroed":
        extra["transports"] = "tcp"
    with Fleet(f"{pair.name}-{way}") as fleet:
        p = fleet.start("P", pair.model, connector(kind, "kv_producer", extra), **p_options)
        d = fleet.start("D", pair.model, connector(consumer, "kv_consumer", extra), **d_options)
        problem = fleet.ready()
        if problem:
            return {**result, "refused": problem, "holds": None if kind == "nixl" else False}
        before = {engine.tag: engine.ask("blocks")["free"] for engine in (p, d)}
        rows = []
        for length, single in zip(pair.lengths, base):
            row = one(p, d, length, max_tokens, logprobs)
            rows.append(row)
            if row["finish"] == "hang":
                break
            if pair.must == "bytes":
                # All but the last, which D computes.
                sent = p.ask("rows", inner=row["p_inner"], tokens=length - 1).get("digests")
                row["rows"] = {"P": sent, "D": d.ask("rows", inner=row["d_inner"], tokens=length - 1).get("digests")}
                row["rows_equal"] = bool(sent) and sent == row["rows"]["D"]
            row["tokens_equal"] = row["tokens"] == single["tokens"]
            row["difference"] = difference(row["logprobs"], single["logprobs"])
            if pair.must == "noise":
                row["divergence"] = divergence(single["first"], row["first"])
            row.pop("first", None)
        after = {engine.tag: engine.settled(before[engine.tag]) for engine in (p, d)}
        result["leaked"] = {tag: before[tag] - now.get("free", -1) for tag, now in after.items()}
        result["metrics"] = d.ask("metrics", prefix=f"vllm:{kind}").get("samples")
        result["resident_mib"] = {engine.tag: engine.resident_mib() for engine in (p, d) if engine.alive}
    result |= {"rows": rows, "seconds": round(time.monotonic() - start, 1)}
    judge(pair, result)
    if way == "zeroed":
        # A control: that this is seen is what must hold.
        result["holds"] = result["tokens_right"] == 0 if pair.must != "noise" else None
    if kind == "nixl":
        # What the stock connector does is shown, not demanded.
        result["holds"] = None
    return result


def one(p, d, length: int, max_tokens: int, logprobs: int) -> dict:
    first = p.generate(f"p{length}", prompt(length), 1, params=dict(PREFILL))
    if not first.get("params"):
        # An engine that has ended is not one that gave nothing.
        finish = f"P: {first['error']}" if "error" in first else "no handle"
        return {"length": length, "finish": finish, "tokens": None, "logprobs": [], "why": first}
    said = d.generate(f"d{length}", prompt(length), max_tokens, params=first["params"], logprobs=logprobs)
    return {
        "length": length,
        "finish": said.get("finish") or said.get("error"),
        "tokens": said.get("tokens"),
        "logprobs": said.get("logprobs") or [],
        "first": said.get("first"),
        "cached": said.get("cached"),
        "seconds": [first.get("seconds"), said.get("seconds")],
        "p_inner": first.get("inner"),
        "d_inner": said.get("inner"),
    }


def difference(some: list[float], others: list[float]) -> float | None:
    """The largest difference of two lists of logprobs; None if they are not as long, or empty."""
    if not some or len(some) != len(others):
        return None
    return max(abs(a - b) for a, b in zip(some, others))


def divergence(of: list[float], other: list[float] | None) -> float | None:
    """Kullback-Leibler divergence of two distributions over the vocabulary, given by logprobs."""
    if not other or len(of) != len(other):
        return None
    return sum(math.exp(a) * (a - b) for a, b in zip(of, other))


def judge(pair: Pair, result: dict) -> None:
    """Counts the rows that are right, and says whether all are."""
    rows = result["rows"]
    if pair.must == "exact":
        right = [row["tokens_equal"] and row["difference"] == 0 for row in rows]
    elif pair.must == "tokens":
        right = [row["tokens_equal"] and row["difference"] is not None and row["difference"] <= pair.within for row in rows]
    elif pair.must == "bytes":
        right = [row["rows_equal"] for row in rows]
    else:
        right = [row["divergence"] is not None for row in rows]
        result["divergence"] = [row["divergence"] for row in rows]
        if result["way"] == "zeroed":
            ZEROED[pair.name] = result["divergence"]
        elif all(right):
            control = ZEROED.get(pair.name, [0.0] * len(right))
            right = [zeroed > pair.margin * ours for zeroed, ours in zip(control, result["divergence"])]
            result["margin"] = min(zeroed / ours for zeroed, ours in zip(control, result["divergence"]))
            if sum(result["divergence"]) > pair.noise * sum(result["noise"]):
                right = [False]
    result["right"] = sum(right)
    result["of"] = len(pair.lengths)
    result["tokens_right"] = sum(bool(row.get("tokens_equal")) for row in rows)
    # Of each prompt but the shortest, something came from the other engine.
    samples = result["metrics"] or {}
    result["pulled"] = sum(value for name, value in samples.items() if re.match(r"vllm:\w+_xfer_time_seconds_count", name))
    result["difference"] = max((row["difference"] for row in rows if row.get("difference") is not None), default=None)
    result["finish"] = sorted({str(row["finish"]) for row in rows})
    nothing_leaked = not any(result["leaked"].values())
    result["holds"] = result["right"] == result["of"] and result["pulled"] >= result["of"] and nothing_leaked
