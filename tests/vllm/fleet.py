"""Engines of one case: P computes prompts, D decodes them, and a baseline does both alone."""

import json
import os
import socket
from pathlib import Path

from engine import Engine

HOME = Path(os.environ.get("VLLM_BATTERY_HOME", "."))
BLOCKS_OF_TOKENS = 8192

PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def prompt(length: int) -> list[int]:
    """Token ids that no other length shares a block with."""
    return [(i * 37 + 11 + length * 101) % 1000 + 3 for i in range(length)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connector(name: str, role: str, extra: dict | None = None, policy: str | None = None) -> dict:
    """A `--kv-transfer-config`."""
    config = {"kv_role": role}
    if name == "moai":
        config |= {"kv_connector": "MoaiConnector", "kv_connector_module_path": "moai_fabric.vllm"}
    elif name == "nixl":
        # As its own documentation configures it.
        config |= {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    else:
        module, _, name = name.rpartition(".")
        config |= {"kv_connector": name, "kv_connector_module_path": module}
    if extra:
        config["kv_connector_extra_config"] = extra
    if policy:
        config["kv_load_failure_policy"] = policy
    return config


class Fleet:
    """Engines that are forked for a case, and end with it."""

    def __init__(self, case: str):
        self.folder = HOME / "runs" / case
        self.folder.mkdir(parents=True, exist_ok=True)
        self.engines: list[Engine] = []

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        for engine in self.engines:
            engine.quit()

    def start(self, tag: str, model: str, transfer: dict | None = None, environment: dict | None = None, **options) -> Engine:
        environment = {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": free_port(),
            **(environment or {}),
        }
        options["model"] = str(HOME / "models" / model)
        if options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1) > 1:
            options["distributed_executor_backend"] = "mp"
        if transfer:
            options["kv_transfer_config"] = transfer
        if model != "deepseek-mla":
            options.setdefault("num_gpu_blocks_override", BLOCKS_OF_TOKENS // options.get("block_size", 128))
        engine = Engine(tag, str(self.folder / f"{tag}.log"), options, environment)
        self.engines.append(engine)
        return engine

    def ready(self) -> str | None:
        """Waits for all that were started; says what went wrong, if anything."""
        for engine in self.engines:
            said = engine.ready()
            if not said.get("ready"):
                return f"{engine.tag}: {said.get('error')}"
        return None


class Baselines:
    """What single engines say, asked once for each of their settings."""

    def __init__(self):
        self.known: dict[str, list[dict]] = {}

    def of(self, model: str, lengths: list[int], max_tokens: int, logprobs: int, **options) -> list[dict]:
        key = json.dumps([model, lengths, max_tokens, logprobs, options], sort_keys=True)
        if key not in self.known:
            with Fleet(f"baseline-{len(self.known)}") as fleet:
                engine = fleet.start("B", model, **options)
                problem = fleet.ready()
                if problem:
                    raise RuntimeError(problem)
                self.known[key] = [
                    engine.generate(f"b{length}", prompt(length), max_tokens, logprobs=logprobs) for length in lengths
                ]
        return self.known[key]
