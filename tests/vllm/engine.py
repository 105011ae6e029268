"""One vLLM engine in a process of its own, forked from one that has imported vLLM, and told what to do by lines of JSON.

Unlike `LLM.generate` the process goes on stepping while nobody waits, as a server does: blocks that a consumer reads are
freed when it is through, and requests can be added, watched and aborted while others run.
"""

import hashlib
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
import traceback

IDLE_SECONDS = 0.002
# An engine's start, and the first request of a pipeline, whose stages compile then, take long on cores that are busy.
ANSWER_SECONDS = 240


class Engine:
    """The parent's end."""

    def __init__(self, tag: str, log: str, options: dict, environment: dict):
        ours, its = socket.socketpair()
        self.tag, self.log, self.done = tag, log, {}
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            # A group of its own, so that its workers can be killed with it.
            os.setsid()
            _serve(its, log, options, environment)
            os._exit(0)
        its.close()
        self.socket, self.rest = ours, b""
        self.alive = True

    def _line(self, deadline: float) -> dict:
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0:
                return {"error": "nothing was heard in time"}
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(1 << 20)
            except TimeoutError:
                continue
            except OSError as error:
                return {"error": f"the engine is gone: {error}"}
            if not more:
                return {"error": "the engine is gone"}
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def ready(self, seconds: float = ANSWER_SECONDS) -> dict:
        return self.answer("ready", seconds)

    def answer(self, name: str, seconds: float = ANSWER_SECONDS) -> dict:
        """What is said under a name, which may have come already."""
        deadline = time.monotonic() + seconds
        while name not in self.done:
            line = self._line(deadline)
            if "error" in line and "name" not in line:
                return line
            self.done[line["name"]] = line
        return self.done.pop(name)

    def send(self, **what) -> None:
        try:
            self.socket.settimeout(10)
            self.socket.sendall((json.dumps(what) + "\n").encode())
        except OSError:
            pass

    def ask(self, op: str, seconds: float = 60, **what) -> dict:
        self.send(op=op, name=op, **what)
        return self.answer(op, seconds)

    def add(self, name: str, prompt: list[int], max_tokens: int, params: dict | None = None, logprobs: int = 1) -> None:
        self.send(op="add", name=name, prompt=prompt, max_tokens=max_tokens, params=params, logprobs=logprobs)

    def generate(self, name: str, *args, seconds: float = ANSWER_SECONDS, **kwargs) -> dict:
        self.add(name, *args, **kwargs)
        answer = self.answer(name, seconds)
        if answer.get("error") == "nothing was heard in time":
            answer = {"finish": "hang", **answer}
        return answer

    def settled(self, free: int, seconds: float = 60) -> dict:
        """Waits until so many blocks are free and no request is left; says what is there in the end."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.ask("blocks")
            if "error" in now or now["free"] == free and now["requests"] == 0 or time.monotonic() > deadline:
                return now
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        os.killpg(self.pid, number)

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        self.alive = False
        self.socket.close()

    def quit(self) -> None:
        if not self.alive:
            return
        self.send(op="quit", name="quit")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.alive = False
                self.socket.close()
                return
            time.sleep(0.05)
        self.kill()

    def resident_mib(self) -> int:
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * 4 // 1024


def _serve(its: socket.socket, log: str, options: dict, environment: dict) -> None:
    os.environ.update({key: str(value) for key, value in environment.items()})
    # Workers write into it too.
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)

    def say(**what) -> None:
        its.sendall((json.dumps(what) + "\n").encode())

    try:
        _run(its, say, options)
    except BaseException as error:
        traceback.print_exc()
        try:
            say(name="ready", ready=False, error=f"{type(error).__name__}: {error}"[:1500])
        except OSError:
            pass
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _run(its: socket.socket, say, options: dict) -> None:
    start = time.monotonic()
    from vllm import LLM
    from vllm.v1.executor import multiproc_executor

    # Workers of this engine are forked too: vLLM is imported already, and on the CPU nothing else forbids it.
    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    defaults = dict(
        skip_tokenizer_init=True,
        load_format="auto",
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=1024,
        max_logprobs=-1,
        distributed_executor_backend="uni",
        disable_log_stats=False,
        seed=0,
    )
    llm = LLM(**{**defaults, **options})
    engine = llm.llm_engine
    server = Server(engine, say)
    say(name="ready", ready=True, seconds=round(time.monotonic() - start, 2))
    rest = b""
    while True:
        busy = server.step()
        readable, _, _ = select.select([its], [], [], 0 if busy else IDLE_SECONDS)
        if not readable:
            continue
        more = its.recv(1 << 20)
        if not more:
            return
        rest += more
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            what = json.loads(line)
            if what["op"] == "quit":
                engine.engine_core.shutdown()
                return
            try:
                getattr(server, what.pop("op"))(**what)
            except Exception as error:
                traceback.print_exc()
                say(name=what["name"], error=f"{type(error).__name__}: {error}"[:1500])


class Server:
    """What the engine can be asked."""

    def __init__(self, engine, say):
        self.engine, self.say = engine, say
        self.core = engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.wanted = {}
        self.blocks_of = {}
        manager = self.scheduler.kv_cache_manager
        free = manager.free

        def freed(request):
            # What a request had, for whoever looks at the bytes after it.
            self.blocks_of[request.request_id] = [list(ids) for ids in manager.get_block_ids(request.request_id)]
            free(request)

        manager.free = freed

    def step(self) -> bool:
        if not self.scheduler.has_requests() and not getattr(self.core, "batch_queue", None):
            return False
        for output in self.engine.step():
            if output.finished and output.request_id in self.wanted:
                self._finished(output)
        # Requests that wait for a peer leave nothing to compute.
        time.sleep(0.0005)
        return True

    def _finished(self, output) -> None:
        name, is_full, start, inner = self.wanted.pop(output.request_id)
        said = output.outputs[0]
        chosen = [step[token].logprob for step, token in zip(said.logprobs or [], said.token_ids)]
        first = None
        if is_full and said.logprobs:
            vocabulary = said.logprobs[0]
            first = [vocabulary[token].logprob for token in sorted(vocabulary)]
        self.say(
            name=name,
            tokens=list(said.token_ids),
            logprobs=chosen,
            first=first,
            finish=said.finish_reason,
            params=output.kv_transfer_params,
            cached=output.num_cached_tokens,
            inner=inner,
            seconds=round(time.monotonic() - start, 4),
        )

    def add(self, name, prompt, max_tokens, params, logprobs) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        sampling = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            detokenize=False,
            ignore_eos=True,
            logprobs=logprobs,
            extra_args={"kv_transfer_params": params} if params else None,
        )
        inner = self.engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), sampling)
        self.wanted[name] = (name, logprobs == -1, time.monotonic(), inner)

    def abort(self, name, request) -> None:
        self.engine.abort_request([request])
        self.wanted.pop(request, None)
        self.say(name=name, aborted=request)

    def blocks(self, name) -> None:
        pool = self.scheduler.kv_cache_manager.block_pool
        self.say(name=name, free=pool.get_num_free_blocks(), requests=len(self.scheduler.requests))

    def rows(self, name, inner, tokens) -> None:
        """A digest of each layer's rows of the first tokens of a request of this process; for MLA, where a row is a token."""
        held = self.blocks_of.get(inner) or [list(ids) for ids in self.scheduler.kv_cache_manager.get_block_ids(inner)]
        runner = self.core.model_executor.driver_worker.worker.model_runner
        digests = []
        for cache in runner.kv_caches:
            rows = cache[held[0]].reshape(-1, cache.shape[-1])[:tokens].contiguous()
            digests.append(hashlib.sha256(rows.view(-1).view(dtype=_bytes()).numpy().tobytes()).hexdigest()[:16])
        self.say(name=name, digests=digests)

    def metrics(self, name, prefix) -> None:
        """Prometheus samples of this process whose names begin so."""
        from prometheus_client import REGISTRY

        found = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                if sample.name.startswith(prefix):
                    labels = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
                    key = sample.name + (json.dumps(labels, sort_keys=True) if labels else "")
                    found[key] = found.get(key, 0) + sample.value
        self.say(name=name, samples=found)


def _bytes():
    import torch

    return torch.uint8
