"""The library beside this module, and messages of JSON to it. Private: what is asked changes with the library."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

NAME = "libmoai_vllm.so"


class Problem(Exception):
    """Something was not done: `reason` is one word, and the text is for people."""

    def __init__(self, reason: str, why: str):
        super().__init__(why)
        self.reason = reason


def _load() -> ctypes.CDLL:
    path = Path(__file__).parent / NAME
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"moai_fabric.vllm: its library {path} cannot be loaded ({error}); build it with `cargo build --release -p moai-vllm`, and "
            f"put target/release/{NAME} there"
        ) from error
    library.moai_vllm_call.restype = ctypes.c_void_p
    library.moai_vllm_call.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.moai_vllm_free.restype = None
    library.moai_vllm_free.argtypes = [ctypes.c_void_p]
    return library


_library = _load()


def call(ask: str, **what: Any) -> Any:
    """Asks the library; other threads run meanwhile.

    Raises `Problem`.
    """
    text = json.dumps({"ask": ask, **what}).encode()
    pointer = _library.moai_vllm_call(text, len(text))
    try:
        answer = json.loads(ctypes.string_at(pointer))
    finally:
        _library.moai_vllm_free(pointer)
    if "problem" in answer:
        raise Problem(answer["problem"]["reason"], answer["problem"]["why"])
    return answer["done"]
