"""Makes the tiny checkpoints of the battery: random weights, seeded, large enough that tokens depend on the cache.

Usage: models.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, Gemma3TextConfig, LlamaConfig

BASE = dict(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    head_dim=64,
    vocab_size=1024,
    max_position_embeddings=2048,
    bos_token_id=1,
    eos_token_id=2,
)


def save(folder: Path, config, deviation: float, seed: int = 0) -> None:
    """Writes a checkpoint whose matrices are normal with the given standard deviation."""
    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(seed)
    config.initializer_range = deviation
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, deviation)
    model.save_pretrained(folder, safe_serialization=True)
    print(f"{folder.name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def main(root: Path) -> None:
    save(root / "llama-kv4", LlamaConfig(num_key_value_heads=4, **BASE), 0.12)
    save(root / "llama-kv1", LlamaConfig(num_key_value_heads=1, **BASE), 0.12)
    # The same shape with other weights: a peer that must be refused by its digest.
    save(root / "llama-kv4-other", LlamaConfig(num_key_value_heads=4, **BASE), 0.12, seed=1)
    # Softer logits, for which noise can be told from nonsense.
    save(root / "llama-soft", LlamaConfig(num_key_value_heads=4, **BASE), 0.05)
    save(
        root / "gemma3-window",
        Gemma3TextConfig(
            num_key_value_heads=2,
            sliding_window=64,
            layer_types=["sliding_attention"] * 5 + ["full_attention"],
            query_pre_attn_scalar=64,
            pad_token_id=0,
            **{**BASE, "num_hidden_layers": 6},
        ),
        0.05,
    )
    save(
        root / "deepseek-mla",
        DeepseekV2Config(
            hidden_size=256,
            intermediate_size=512,
            moe_intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=8,
            n_shared_experts=1,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            first_k_dense_replace=3,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_rope_head_dim=64,
            qk_nope_head_dim=64,
            v_head_dim=64,
            vocab_size=1024,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
            head_dim=64,
        ),
        0.08,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
