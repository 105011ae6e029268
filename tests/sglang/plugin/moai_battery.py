"""A plug-in of SGLang for the battery alone: a machine without a GPU, and faults.

Loaded by the entry point group ``sglang.srt.plugins`` in every process of a server.
"""

import os
import time


def register() -> None:
    """Called by SGLang before it starts."""
    # The wheel's CPU kernels are not on PyPI. Without them SGLang takes rotary embeddings from vLLM, except on a CPU, where it
    # computes them in PyTorch: which is what this asks for.
    import sglang.srt.layers.rotary_embedding.base as rope

    rope._is_cpu = True
    fault = os.environ.get("MOAI_BATTERY_FAULT")
    if fault is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    manager = "moai_fabric.sglang.manager.MoaiKVManager"
    if fault == "zero":
        # The control: what was pulled is overwritten with zeros before the request is computed.
        def zero(result, self, room):
            pages = self.targets[room].pages
            for tensor in self.pool.tensors():
                size = self.pool.page_size
                for page in pages:
                    tensor[page * size : (page + 1) * size] = 0

        HookRegistry.register(f"{manager}.committed", zero, HookType.AFTER)
    elif fault == "slow":
        # Holds each pull back, so that its producer can be killed before it.
        def slow(self, *arguments, **named):
            time.sleep(4)
            return (self, *arguments), named

        HookRegistry.register(f"{manager}.start_pull", slow, HookType.BEFORE)
    else:
        raise ValueError(f"MOAI_BATTERY_FAULT: {fault!r} is none of 'zero', 'slow'")
