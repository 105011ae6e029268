"""Writes the tiny checkpoints that the battery serves.

Weights are random, drawn from a fixed seed with a large spread: next tokens then depend on the whole context, so a cache
that is wrong anywhere gives other tokens.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def write(folder: Path, spread: float = 0.12, **changed: int) -> None:
    """Writes one model, unless it is there."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
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
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, **changed}))
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, spread)
    model.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    write(home / "llama-kv4")
    write(home / "llama-kv2", num_key_value_heads=2)
