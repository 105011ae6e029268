"""A digest of a model's weights, by which engines with unlike weights are refused.

The path of a model says nothing: one model may lie in two places, and two models in one, one after the other. Reading all weights would
take minutes, so the digest is of the configuration, of the headers of the weights' files (names, shapes and types of all tensors) and of samples
of their bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# What a configuration says of how it was saved or is run, not of the weights.
NOT_OF_THE_WEIGHTS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"}
SAMPLES = 64
SAMPLE_BYTES = 4096


def digest(folder: str) -> str | None:
    """The digest of a folder with safetensors files; None where there is no such folder or file."""
    root = Path(folder)
    weights = sorted(root.glob("*.safetensors")) if root.is_dir() else []
    if not weights:
        return None
    total = hashlib.sha256(b"moai model 1\0")
    config = root / "config.json"
    if config.is_file():
        with config.open("rb") as file:
            said = json.load(file)
        kept = {key: value for key, value in said.items() if key not in NOT_OF_THE_WEIGHTS}
        total.update(json.dumps(kept, sort_keys=True).encode())
    for path in weights:
        size = path.stat().st_size
        total.update(f"\0{path.name} {size}\0".encode())
        with path.open("rb") as file:
            header = min(int.from_bytes(file.read(8), "little"), size)
            total.update(file.read(header))
            data = size - 8 - header
            # Spread evenly, the first and the last bytes included.
            for sample in range(SAMPLES):
                file.seek(8 + header + max(0, data - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                total.update(file.read(SAMPLE_BYTES))
    return f"sha256:{total.hexdigest()}"
