"""A plug-in of SGLang for the battery alone: a machine without a GPU, and faults.

Loaded by the entry point group ``sglang.srt.plugins`` in every process of a server. The file that BATTERY_FAULT names holds the
fault of the moment: `zero`, `slow`, `watched`, or nothing. Files beside it are there once a pull is held back (`held`), and once one has begun
that is watched (`pulling`).
Where BATTERY_DUMP names a folder, each side writes there what its pool holds of a request, as float32: what it offers, and what it pulled.
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
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    manager = "moai_fabric.sglang.manager.MoaiKVManager"
    folder = os.environ.get("BATTERY_DUMP")
    if folder is not None:

        def offered(result, self, bootstrap_room, kv_indices, index_slice, is_last_chunk, **named):
            # Pulled it may be already; its pages stay until the scheduler, whose thread this is, hears of it.
            if is_last_chunk:
                outgoing = self.outgoing[bootstrap_room]
                write(self, Path(folder) / f"{bootstrap_room}-prefill-{self.rank.number}.pt", outgoing.pages, outgoing.tokens)

        def pulled(result, self, room):
            target = self.targets[room]
            write(self, Path(folder) / f"{room}-decode-{self.rank.number}.pt", target.pages, target.offer.tokens)

        HookRegistry.register(f"{manager}.add_transfer_request", offered, HookType.AFTER)
        HookRegistry.register(f"{manager}.committed", pulled, HookType.AFTER)
    path = os.environ.get("BATTERY_FAULT")
    if path is None:
        return

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

    def begun(result, self, target, offer):
        if fault() == "watched" and target.is_held:
            Path(path).with_name("pulling").touch()

    HookRegistry.register(f"{manager}.committed", zero, HookType.AFTER)
    HookRegistry.register(f"{manager}.start_pull", slow, HookType.BEFORE)
    HookRegistry.register(f"{manager}.start_pull", begun, HookType.AFTER)


def write(manager, file: Path, pages: list[int], tokens: int) -> None:
    """Writes a request's rows, as [layer and component, token, head, dim], whatever the pages."""
    import torch

    size, dtype = manager.pool.page_size, manager.pool._pool.dtype
    slots = [page * size + slot for page in pages for slot in range(size)][:tokens]
    rows = torch.stack([tensor[slots].view(dtype).float() for tensor in manager.pool.tensors()])
    # Whole at once: the battery reads it when the request has ended.
    new = file.with_suffix(".new")
    torch.save(rows, new)
    new.replace(file)
