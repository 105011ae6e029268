"""Writes the tiny checkpoints that the battery serves.

Weights are random, drawn from a fixed seed with a large spread: next tokens then depend on the whole context, so a cache
that is wrong anywhere gives other tokens.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, LlamaConfig, PretrainedConfig


def llama(**changed: int) -> LlamaConfig:
    """Few heads, few layers."""
    shape = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**shape, **changed})


def deepseek() -> DeepseekV2Config:
    """Latent attention, and no experts."""
    shape = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "q_lora_rank": None,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "first_k_dense_replace": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 1024}
    rope |= {"mscale": 0.7, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1}
    # What SGLang reads, and transformers does not know.
    return DeepseekV2Config(**shape, rope_parameters=rope, moe_layer_freq=1)


def write(folder: Path, config: PretrainedConfig, spread: float = 0.12) -> None:
    """Writes one model, unless it is there."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, spread)
    model.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    write(home / "llama-kv4", llama())
    write(home / "llama-kv2", llama(num_key_value_heads=2))
    write(home / "deepseek", deepseek())
