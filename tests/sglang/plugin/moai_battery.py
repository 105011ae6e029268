"""A plug-in of SGLang for the battery alone: a machine without a GPU, and faults.

Loaded by the entry point group ``sglang.srt.plugins`` in every process of a server. The file that BATTERY_FAULT names holds the
fault of the moment: `zero`, `slow`, or nothing. A file beside it, `held`, is there once a pull is held back.
"""

import os
import time
from pathlib import Path

# Longer than the battery needs to do what it does meanwhile.
HELD_SECONDS = 30


def register() -> None:
    """Called by SGLang before it starts."""
    # The wheel's CPU kernels are not on PyPI. Without them SGLang takes rotary embeddings from vLLM, except on a CPU, where it
    # computes them in PyTorch: which is what this asks for.
    import sglang.srt.layers.rotary_embedding.base as rope

    rope._is_cpu = True
    path = os.environ.get("BATTERY_FAULT")
    if path is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    manager = "moai_fabric.sglang.manager.MoaiKVManager"

    def fault() -> str:
        return Path(path).read_text()

    def zero(result, self, room):
        """The control: what was pulled is overwritten with zeros before the request is computed."""
        if fault() != "zero":
            return
        size = self.pool.page_size
        for tensor in self.pool.tensors():
            for page in self.targets[room].pages:
                tensor[page * size : (page + 1) * size] = 0

    def slow(*arguments, **named):
        """Holds each pull back while the fault lasts, so that something can happen between an offer and its pull."""
        if fault() != "slow":
            return
        Path(path).with_name("held").touch()
        end = time.monotonic() + HELD_SECONDS
        while fault() == "slow" and time.monotonic() < end:
            time.sleep(0.1)

    HookRegistry.register(f"{manager}.committed", zero, HookType.AFTER)
    HookRegistry.register(f"{manager}.start_pull", slow, HookType.BEFORE)
