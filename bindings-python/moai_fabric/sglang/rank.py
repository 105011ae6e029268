"""One rank's node of the fabric: put together of SGLang's scheduler, its pool and what the other ranks say."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass

from .describe import Model, Piece, Undescribed, description
from .node import Node
from .plugin import sglang_version
from .pool import Pool
from .settings import Settings

logger = logging.getLogger(f"sglang.{__name__}")


@dataclass(frozen=True)
class Rank:
    """What a manager works with."""

    node: Node
    pool: Pool
    engine: str
    epoch: int
    number: int


def open_rank(queue, role: str, settings: Settings, host: str) -> Rank:
    """Probes the pool, describes the server together with its other ranks, and begins to listen.

    `queue` is SGLang's `PrefillBootstrapQueue` or `DecodePreallocQueue`; `role` is `prefill` or `decode`. Raises `Undescribed`,
    `probe.Unexplained` and what the fabric raises, all of which end the server: what cannot be described is not served.
    """
    from sglang.srt.runtime_context import get_parallel, get_serving

    parallel = get_parallel()
    for size, what in ((parallel.attn_cp_size, "attention context"), (parallel.attn_dcp_size, "decode context")):
        if size > 1:
            raise Undescribed(f"{what} parallel size {size} is not described by this backend: use 1")
    if parallel.attn_tp_size != parallel.tp_size:
        raise Undescribed(
            f"attention over {parallel.attn_tp_size} of {parallel.tp_size} ranks (data parallel attention) is not described by this backend"
        )
    scheduler = queue.scheduler
    if getattr(queue, "draft_token_to_kv_pool", None) is not None:
        raise Undescribed("the pool of a draft model is not described by this backend: serve without speculative decoding")
    pool = Pool(queue.token_to_kv_pool)
    config = scheduler.model_config
    model = Model(
        name=str(get_serving().served_model_name),
        digest=settings.model_digest,
        engine=f"sglang {sglang_version()} {type(queue.token_to_kv_pool).__name__} page of {pool.page_size}",
        tp=parallel.attn_tp_size,
        pp=parallel.pp_size,
        heads=1 if pool.is_latent else config.get_total_num_kv_heads(),
    )
    piece = Piece(
        tp_rank=parallel.attn_tp_rank,
        pp_rank=parallel.pp_rank,
        layers=pool.layers,
        page_size=pool.page_size,
        pages=pool.pages,
        parts=pool.parts,
        scales=_scales(scheduler, pool),
    )
    # Of the data parallel replicas of a server, each is an engine of its own.
    name = f"sglang-{role}-{_word(host)}-{get_serving().port}"
    if parallel.dp_rank:
        name += f"-{parallel.dp_rank}"
    # A later life of a server has a later epoch.
    mine = (piece, secrets.token_bytes(32), time.time_ns())
    world = parallel.world_group
    everyone = world.all_gather_object(mine) if world.world_size > 1 else [mine]
    # The first rank's draw is everyone's.
    _, key, epoch = everyone[0]
    number = model.number(piece.tp_rank, piece.pp_rank)
    node = Node(
        engine=name,
        node=number,
        epoch=epoch,
        key=key,
        produces=role == "prefill",
        consumes=role == "decode",
        description=description(model, [piece for piece, _, _ in everyone]),
        spans=pool.spans(),
    )
    logger.info(
        "moai: %s rank %d, %d layers, %d pages of %d tokens, %s; at %s%s",
        name,
        number,
        len(pool.layers),
        pool.pages,
        pool.page_size,
        "; ".join(f"{part.name}: {part.element} {' '.join(word for word, _ in part.words)}" for part in pool.parts),
        ", ".join(node.addresses),
        "" if pool.on_host else ", through host memory",
    )
    return Rank(node, pool, name, epoch, number)


def _scales(scheduler, pool: Pool) -> dict[str, tuple[float, ...]]:
    """By which each layer's numbers are divided before they are stored in a format of 8 bits."""
    found: dict[int, tuple[float, float]] = {}
    for module in scheduler.tp_worker.model_runner.model.modules():
        if type(module).__name__ == "RadixAttention":
            scales = (getattr(module, name, None) for name in ("k_scale_float", "v_scale_float"))
            key, value = (1.0 if scale is None else float(scale) for scale in scales)
            found[module.layer_id] = (key, value)
    names = [part.name for part in pool.parts]
    return {name: tuple(found.get(layer, (1.0, 1.0))[at] for layer in pool.layers) for at, name in enumerate(names)}


def _word(host: str) -> str:
    """An address as part of a name."""
    return "".join(letter if letter.isalnum() else "." for letter in host)
