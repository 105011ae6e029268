"""Servers of SGLang, started and asked as an operator does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
# Pages of other requests would hide those that leak; idle servers would take the processor from those that are asked.
COMMON = [
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--skip-tokenizer-init", "--skip-server-warmup", "--disable-radix-cache", "--sleep-on-idle"),
    *("--max-total-tokens", "4096", "--context-length", "1024", "--max-running-requests", "4", "--random-seed", "1"),
]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "SGLANG_HOST_IP": HOST,
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "60",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60",
}
# Five servers that start at once take two minutes on two idle cores, and many times that where others work too.
START_SECONDS = 900


class ServerError(Exception):
    """A server did not start, or does not answer; the message ends with its log."""


@dataclass
class Server:
    """One server with its processes. `role` is prefill, decode, or empty for one that does both."""

    role: str
    model: Path
    port: int
    log: Path
    page: int
    dtype: str = "bfloat16"
    tp: int = 1
    pp: int = 1
    bootstrap: int = 0
    extra: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Launches it; `wait` says when it answers."""
        command = [sys.executable, "-m", "sglang.launch_server", *COMMON, "--model-path", str(self.model), "--dtype", self.dtype]
        command += ["--page-size", str(self.page), "--tp-size", str(self.tp), "--pp-size", str(self.pp)]
        command += ["--host", HOST, "--port", str(self.port), *self.extra]
        if self.role:
            command += ["--disaggregation-mode", self.role, "--disaggregation-transfer-backend", "moai"]
        if self.role == "decode":
            # The default keeps retracted requests in memory that it registers with CUDA.
            command += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
        if self.role == "prefill":
            command += ["--disaggregation-bootstrap-port", str(self.bootstrap)]
        plugin = str(Path(__file__).parent / "plugin")
        environment = {**os.environ, **QUIET, "PYTHONPATH": plugin, **self.environment}
        ranks = self.tp * self.pp
        if ranks > 1:
            # More ranks than NUMA nodes: SGLang wants to be told their cores.
            cores = sorted(os.sched_getaffinity(0))
            environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
            # Where torch brings NCCL along, SGLang wants GPUs for it. It goes without if there is none.
            environment["SGLANG_NCCL_SO_PATH"] = "none"
        with self.log.open("w") as log:
            # A group of its own: killing it kills the scheduler too.
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> "Server":
        """Until it answers. Raises `ServerError`."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://{HOST}:{self.port}/v1/models", timeout=5):
                    return self
            except OSError:
                time.sleep(0.5)
        raise ServerError(f"{self.role or 'baseline'} server did not start: {self.log}\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        """The end of its log."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    def says(self, text: str) -> bool:
        """Whether its log has a text."""
        return text in self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Ends all its processes at once."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def pause(self) -> None:
        """Stops all its processes where they are."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def generate(self, prompt: list[int], tokens: int, timeout: float = 120, **bootstrap: object) -> dict:
        """Greedy tokens and their logprobs, or `{"error": …}`."""
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
            "return_logprob": True,
            **bootstrap,
        }
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}/generate", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                answer = json.load(answer)
        except urllib.error.HTTPError as error:
            return {"error": f"{error.code} {error.read().decode(errors='replace')[:1500]}"}
        except OSError as error:
            return {"error": f"no answer: {error}"}
        finish = answer["meta_info"]["finish_reason"]
        if finish["type"] == "abort":
            return {"error": finish["message"]}
        logprobs = answer["meta_info"]["output_token_logprobs"]
        return {"tokens": [one[1] for one in logprobs], "logprobs": [one[0] for one in logprobs]}

    def abort(self, rid: str) -> None:
        """Ends a request that was given this name."""
        body = json.dumps({"rid": rid}).encode()
        request = urllib.request.Request(f"http://{HOST}:{self.port}/abort_request", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def used_tokens(self) -> int:
        """Slots of its pool that requests hold, once nothing runs."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/v1/loads?include=all", timeout=10) as answer:
            return sum(load["num_used_tokens"] for load in json.load(answer)["loads"])


ROOMS = iter(range(int(time.time()) << 20, 1 << 62))


def disaggregated(prefill: Server, decode: Server, prompt: list[int], tokens: int, timeout: float = 120) -> tuple[dict, dict]:
    """The answers of both servers to one request, which a router would send to both."""
    bootstrap = {"bootstrap_host": HOST, "bootstrap_port": prefill.bootstrap, "bootstrap_room": next(ROOMS)}
    with ThreadPoolExecutor(1) as other:
        first: Future = other.submit(prefill.generate, prompt, tokens, timeout, **bootstrap)
        answer = decode.generate(prompt, tokens, timeout, **bootstrap)
        return first.result(), answer
