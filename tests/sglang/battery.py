"""Real SGLang servers, prefill and decode apart, held against one server that does both.

Usage: battery.py HOME [PART…]. Parts: pages, tp, pp, dtypes, starts; all by default. HOME has `models/`; results go to HOME/results.
Prompts are token numbers, tokens are taken greedily, and in one number format the disaggregated answer must be the single server's,
token for token and logprob for logprob. Exits with 1 if something that must hold does not.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Callable

import torch

from servers import HOST, ROOMS, Server, ServerError, disaggregated

LENGTHS = (5, 16, 17, 64, 70, 130, 300)
TOKENS = 24
PARTS = ("pages", "tp", "pp", "dtypes", "starts")
# KV formats that SGLang keeps on a CPU, and torch's names of them.
FORMATS = {"auto": torch.float32, "bfloat16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn}
# A request whose prefill server is dead must have ended by then.
ERROR_SECONDS = 60
PORTS = iter(range(31100, 31900, 10))


def prompt(length: int) -> list[int]:
    """The same on every run, and unlike for each length."""
    return [(at * 37 + 11 + length * 101) % 1000 + 3 for at in range(length)]


class Battery:
    """Servers, and what was seen of them."""

    def __init__(self, home: Path):
        self.home, self.rows, self.running = home, [], []
        self.results = home / "results"
        self.results.mkdir(exist_ok=True)
        self.fault_file = self.results / "fault"
        self.fault("")

    def fault(self, name: str) -> None:
        """What goes wrong from now on in servers that were given faults."""
        for mark in ("held", "pulling"):
            (self.results / mark).unlink(missing_ok=True)
        # At once: servers read it meanwhile.
        new = self.fault_file.with_name("fault.new")
        new.write_text(name)
        new.replace(self.fault_file)

    def sees(self, mark: str) -> bool:
        """Whether a server with faults says this before long."""
        end = time.monotonic() + ERROR_SECONDS
        while not (self.results / mark).exists() and time.monotonic() < end:
            time.sleep(0.05)
        return (self.results / mark).exists()

    def once_held(self, act: Callable[[], None], goes_on: bool = True) -> threading.Thread:
        """Does something between an offer and its pull, which is held back until then, or until the fault is taken back.

        Where no pull comes, nothing is done: the request ends as it does, and its row does not hold.
        """
        self.fault("slow")

        def wait() -> None:
            if self.sees("held"):
                act()
            if goes_on:
                self.fault("")

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def once_pulling(self, prefill: Server, act: Callable[[], None]) -> threading.Thread:
        """Does something while a request is pulled from a server that does not answer: by itself a pull is too short to meet it."""

        def begin() -> None:
            prefill.pause()
            self.fault("watched")
            if self.sees("pulling"):
                act()

        return self.once_held(begin)

    def server(self, name: str, role: str = "", model: str = "llama-kv4", page: int = 16, **more) -> Server:
        """Launches one."""
        # A prefill server waits as long for a decode server that is dead.
        environment = {"BATTERY_FAULT": str(self.fault_file)} if role == "decode" else {"SGLANG_MOAI_LEASE": "20"}
        environment |= more.pop("environment", {})
        port = more.pop("port", None) or next(PORTS)
        bootstrap = more.pop("bootstrap", 0) or port + 1
        log = self.results / f"{name}.log"
        server = Server(role, self.home / "models" / model, port, log, page, bootstrap=bootstrap, environment=environment, **more)
        server.start()
        self.running.append(server)
        return server

    def stop(self, *servers: Server) -> None:
        """Kills some, or all."""
        for server in servers or list(self.running):
            server.kill()
            self.running.remove(server)

    def row(self, case: str, expected: str, seen: str, holds: bool) -> None:
        """A line of the table."""
        self.rows.append({"case": case, "expected": expected, "seen": seen, "holds": holds})
        print(f"{'ok  ' if holds else 'FAIL'} {case}: {seen} (expected: {expected})", flush=True)

    # Checks

    def parity(self, case: str, baseline: Server, prefill: Server, decode: Server, lengths=LENGTHS) -> None:
        """Tokens and logprobs equal the single server's, and no page stays behind."""
        before = [settled(server) for server in (prefill, decode)]
        exact, worst, problems = 0, 0.0, []
        for length in lengths:
            wanted = baseline.generate(prompt(length), TOKENS)
            _, answer = disaggregated(prefill, decode, prompt(length), TOKENS)
            if "error" in answer:
                problems.append(answer["error"][:300])
                continue
            exact += answer["tokens"] == wanted["tokens"]
            worst = max([worst, *(abs(a - b) for a, b in zip(answer["logprobs"], wanted["logprobs"]))])
        after = [settled(server) for server in (prefill, decode)]
        seen = f"{exact} of {len(lengths)} exact, logprobs within {worst:g}, slots in use {before} before and {after} after"
        holds = exact == len(lengths) and worst == 0 and before == after
        self.row(case, "all exact, no slot left", "; ".join([seen, *problems]), holds)

    def zeroed(self, baseline: Server, prefill: Server, decode: Server) -> None:
        """The control: tokens depend on what is moved."""
        self.fault("zero")
        same = 0
        lengths = [length for length in LENGTHS if length >= 64]
        for length in lengths:
            wanted = baseline.generate(prompt(length), TOKENS)
            _, answer = disaggregated(prefill, decode, prompt(length), TOKENS)
            same += answer.get("tokens") == wanted["tokens"]
        self.fault("")
        self.row("control: pulled pages overwritten with zeros", "none exact", f"{same} of {len(lengths)} exact", same == 0)

    def fails(self, case: str, prefill: Server, decode: Server, words: list[str], bootstrap: dict | None = None, at: int = 1) -> None:
        """A request ends with an error that says why, in time: at the decode server, or at the prefill server (0)."""
        start = time.monotonic()
        if bootstrap is None:
            answer = disaggregated(prefill, decode, prompt(70), TOKENS)[at]
        else:
            answer = decode.generate(prompt(70), TOKENS, **bootstrap)
        took = time.monotonic() - start
        error = answer.get("error", f"an answer: {answer.get('tokens')}")
        holds = "error" in answer and all(word in error for word in words) and took < ERROR_SECONDS
        self.row(case, f"an error within {ERROR_SECONDS} s that says {', '.join(words) or 'why'}", f"after {took:.0f} s: {error[:400]}", holds)

    # Parts

    def pages(self) -> None:
        """Like and unlike page sizes, every pair of four servers; then the control and the faults on the same servers."""
        baseline = self.server("baseline")
        prefills = {page: self.server(f"prefill-p{page}", "prefill", page=page) for page in (16, 64)}
        decodes = {page: self.server(f"decode-p{page}", "decode", page=page) for page in (16, 64)}
        for server in self.running:
            server.wait()
        for source, prefill in prefills.items():
            for target, decode in decodes.items():
                self.parity(f"page {source} → {target}, bf16", baseline, prefill, decode)
        self.zeroed(baseline, prefills[16], decodes[64])
        self.faults(baseline, prefills, decodes)
        self.stop()

    def faults(self, baseline: Server, prefills: dict[int, Server], decodes: dict[int, Server]) -> None:
        """Servers die, and the others go on."""
        prefill, decode = prefills[64], decodes[16]
        before = settled(decode)
        held = self.once_held(prefill.kill)
        self.fails("page 64 → 16, prefill server killed before the pull", prefill, decode, [])
        held.join()
        self.running.remove(prefill)
        self.parity("the same decode server, from the other prefill server", baseline, prefills[16], decode, (70, 300))
        # Nobody computes this one: the decode server waits for a server that dies while it waits.
        again = self.server("prefill-p64-again", "prefill", page=64, port=prefill.port, bootstrap=prefill.bootstrap).wait()
        self.parity("page 64 → 16, prefill server started again at its place", baseline, again, decode, (70, 300))
        threading.Timer(3, again.kill).start()
        bootstrap = {"bootstrap_host": HOST, "bootstrap_port": again.bootstrap, "bootstrap_room": next(ROOMS)}
        self.fails("prefill server killed before it computes", again, decode, [], bootstrap)
        self.running.remove(again)
        after = settled(decode)
        self.row("slots of the decode server after these", f"{before}", f"{after}", before == after)
        # The client gives up.
        before = [settled(prefills[16]), settled(decode)]
        bootstrap = {"bootstrap_host": HOST, "bootstrap_port": prefills[16].bootstrap, "bootstrap_room": next(ROOMS)}
        held = self.once_held(lambda: decode.abort("given up"), goes_on=False)
        threading.Timer(1, lambda: prefills[16].generate(prompt(70), TOKENS, **bootstrap)).start()
        self.fails("a request that is aborted before its pull", prefills[16], decode, ["Abort"], {**bootstrap, "rid": "given up"})
        held.join()
        self.fault("")
        self.parity("page 16 → 16 after it", baseline, prefills[16], decode, (70, 300))
        bootstrap["bootstrap_room"] = next(ROOMS)
        held = self.once_pulling(prefills[16], lambda: decode.abort("given up"))
        threading.Timer(1, lambda: prefills[16].generate(prompt(70), TOKENS, **bootstrap)).start()
        self.fails("a request that is aborted while it is pulled", prefills[16], decode, ["Abort"], {**bootstrap, "rid": "given up"})
        held.join()
        prefills[16].go_on()
        self.parity("page 16 → 16 after it", baseline, prefills[16], decode, (70, 300))
        after = [settled(prefills[16]), settled(decode)]
        self.row("slots of both servers after these", f"{before}", f"{after}", before == after)
        # The consumer dies.
        prefill, doomed = prefills[16], decodes[64]
        before = settled(prefill)
        held = self.once_held(doomed.kill)
        self.fails("page 16 → 64, decode server killed before the pull", prefill, doomed, ["expired"], at=0)
        held.join()
        self.running.remove(doomed)
        self.parity("the same prefill server, to the other decode server", baseline, prefill, decode, (70, 300))
        after = settled(prefill, 90)
        self.row("slots of the prefill server after that", f"{before}", f"{after}", before == after)
        # Pairs that cannot be joined, and servers that must not be talked to.
        other = self.server("prefill-kv2", "prefill", model="llama-kv2").wait()
        self.fails("a model of 2 KV heads → one of 4", other, decode, ["heads"])
        self.stop(other)
        named = {"bootstrap_host": "192.0.2.1", "bootstrap_port": 9, "bootstrap_room": next(ROOMS)}
        self.fails("a request that names a host that is not allowed", prefill, decode, ["SGLANG_MOAI_PEERS"], named)
        self.parity("page 16 → 16 after all that", baseline, prefill, decode, (70, 300))
        # The producer dies once more, in the middle.
        before = settled(decode)
        held = self.once_pulling(prefill, prefill.kill)
        self.fails("page 16 → 16, prefill server killed while it is pulled", prefill, decode, [])
        held.join()
        self.running.remove(prefill)
        after = settled(decode)
        self.row("slots of the decode server after that", f"{before}", f"{after}", before == after)

    def tp(self) -> None:
        """Tensor parallel sizes that differ, in float32, where the sum over ranks comes out the same."""
        baseline = self.server("baseline-f32", dtype="float32")
        two = self.server("prefill-tp2", "prefill", dtype="float32", tp=2)
        one = self.server("decode-tp1", "decode", dtype="float32", page=64)
        for server in self.running:
            server.wait()
        self.tokens("tp 2 page 16 → tp 1 page 64, f32", baseline, two, one)
        self.stop(two, one)
        one = self.server("prefill-tp1", "prefill", dtype="float32", page=64)
        two = self.server("decode-tp2", "decode", dtype="float32")
        one.wait(), two.wait()
        self.tokens("tp 1 page 64 → tp 2 page 16, f32", baseline, one, two)
        self.stop()

    def pp(self) -> None:
        """Two pipeline stages that prefill, for one or two that decode: no sum is made in another order."""
        baseline = self.server("baseline-one-stage")
        two = self.server("prefill-pp2", "prefill", pp=2)
        one = self.server("decode-pp1", "decode", page=64)
        for server in self.running:
            server.wait()
        self.parity("pp 2 page 16 → pp 1 page 64, bf16", baseline, two, one)
        self.stop(one)
        other = self.server("decode-pp2", "decode", page=64, pp=2).wait()
        self.parity("pp 2 page 16 → pp 2 page 64, bf16", baseline, two, other)
        self.stop()

    def tokens(self, case: str, baseline: Server, prefill: Server, decode: Server) -> None:
        """Tokens equal the single server's; logprobs may differ by rounding, as sums over ranks are made in another order."""
        before = [settled(server) for server in (prefill, decode)]
        exact, worst, problems = 0, 0.0, []
        for length in LENGTHS:
            wanted = baseline.generate(prompt(length), TOKENS)
            _, answer = disaggregated(prefill, decode, prompt(length), TOKENS)
            if "error" in answer:
                problems.append(answer["error"][:300])
                continue
            exact += answer["tokens"] == wanted["tokens"]
            worst = max([worst, *(abs(a - b) for a, b in zip(answer["logprobs"], wanted["logprobs"]))])
        after = [settled(server) for server in (prefill, decode)]
        seen = f"{exact} of {len(LENGTHS)} exact, logprobs within {worst:.2g}, slots in use {before} before and {after} after"
        holds = exact == len(LENGTHS) and worst < 1e-4 and before == after
        self.row(case, "all tokens exact, logprobs within 1e-4, no slot left", "; ".join([seen, *problems]), holds)

    def dtypes(self) -> None:
        """Unlike KV formats under one model in float32: what the decode server holds are the prefill server's numbers, in its own format.

        No single server computes as such a pair does, so answers have nothing to be held against: the two pools are.
        """
        dumps = self.results / "dumps"
        shutil.rmtree(dumps, ignore_errors=True)
        dumps.mkdir()
        more = {"dtype": "float32", "environment": {"BATTERY_DUMP": str(dumps)}}
        prefills = {name: self.server(f"prefill-{name}", "prefill", extra=["--kv-cache-dtype", name], **more) for name in FORMATS}
        for server in self.running:
            server.wait()
        for target in FORMATS:
            # One after another: memory for six servers is more than small machines have.
            decode = self.server(f"decode-{target}", "decode", page=64, extra=["--kv-cache-dtype", target], **more).wait()
            for source, prefill in prefills.items():
                self.converted(source, target, prefill, decode, dumps)
            self.stop(decode)
        self.stop()

    def converted(self, source: str, target: str, prefill: Server, decode: Server, dumps: Path) -> None:
        """What was pulled equals what was offered, converted by torch."""
        before = [settled(server) for server in (prefill, decode)]
        equal, problems = 0, []
        for length in LENGTHS:
            first, answer = disaggregated(prefill, decode, prompt(length), TOKENS)
            files = {role: list(dumps.glob(f"*-{role}-0.pt")) for role in ("prefill", "decode")}
            if "error" in answer or any(len(found) != 1 for found in files.values()):
                problems.append(answer.get("error", f"{files}")[:300])
            else:
                offered, pulled = (torch.load(found[0]) for found in files.values())
                equal += torch.equal(offered.to(FORMATS[target]).float(), pulled) and pulled.shape[1] == length
                if answer["tokens"][0] != first["tokens"][0]:
                    problems.append(f"of {length} tokens: prefill's first token is not decode's")
            for found in files.values():
                for file in found:
                    file.unlink()
        after = [settled(server) for server in (prefill, decode)]
        names = [str(FORMATS[name]).removeprefix("torch.") for name in (source, target)]
        seen = f"{equal} of {len(LENGTHS)} equal, slots in use {before} before and {after} after"
        holds = equal == len(LENGTHS) and not problems and before == after
        expected = "all pools equal after torch's own conversion, no slot left"
        self.row(f"page 16 → 64, KV {' → '.join(names)}", expected, "; ".join([seen, *problems]), holds)

    def starts(self) -> None:
        """What servers say of their pools when they start, and what they refuse then.

        `torch_native` does not compute latent attention, so nothing is asked of the server that has it.
        """
        mla = self.server("prefill-mla", "prefill", model="deepseek")
        radix = self.server("decode-radix", "decode", extra=["--disaggregation-decode-enable-radix-cache"])
        for server, case, words in (
            (mla, "a pool of latents", "latent: bf16 slot dim"),
            (radix, "a decode server with a radix cache", "--disaggregation-decode-enable-radix-cache: the backend moai moves whole requests"),
        ):
            try:
                server.wait()
                starts = True
            except ServerError:
                starts = False
            said = "says so" if server.says(words) else f"does not: {server.tail(5)}"
            wanted = server is mla
            expected = f"{'starts' if wanted else 'does not start'}, and says: {words}"
            self.row(case, expected, f"{'starts' if starts else 'does not start'}, and {said}", starts == wanted and server.says(words))
        self.stop()

    def report(self) -> bool:
        """Writes the results; whether all holds."""
        holds = bool(self.rows) and all(row["holds"] for row in self.rows)
        about = {"sglang": version("sglang"), "torch": version("torch"), "moai-fabric": version("moai-fabric"), "machine": platform.machine()}
        (self.results / "results.json").write_text(json.dumps({"about": about, "holds": holds, "rows": self.rows}, indent=1))
        lines = ["| case | expected | seen | holds |", "|---|---|---|---|"]
        for row in self.rows:
            cells = [str(row[key]).replace("|", "\\|").replace("\n", " ") for key in ("case", "expected", "seen")]
            lines.append(f"| {' | '.join(cells)} | {'yes' if row['holds'] else '**no**'} |")
        (self.results / "results.md").write_text("\n".join([*lines, ""]))
        print(f"\n{self.results / 'results.md'}: {sum(row['holds'] for row in self.rows)} of {len(self.rows)} hold")
        return holds


def settled(server: Server, seconds: float = 20) -> int:
    """Slots that requests hold, once they have been the fewest for a while."""
    end = time.monotonic() + seconds
    used = server.used_tokens()
    while used and time.monotonic() < end:
        time.sleep(0.5)
        used = server.used_tokens()
    return used


def main(arguments: list[str]) -> int:
    """See the module."""
    unknown = [name for name in arguments[1:] if name not in PARTS]
    if not arguments or unknown:
        print(f"usage: battery.py HOME [PART…]; parts: {', '.join(PARTS)}; not known: {', '.join(unknown) or 'HOME'}", file=sys.stderr)
        return 2
    battery = Battery(Path(arguments[0]).resolve())
    for part in arguments[1:] or PARTS:
        try:
            getattr(battery, part)()
        except ServerError as error:
            battery.row(f"servers of {part} start", "they do", str(error)[-1500:], False)
        finally:
            battery.stop()
    return 0 if battery.report() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
