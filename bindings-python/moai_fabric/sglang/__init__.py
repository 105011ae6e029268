"""MoAI Fabric as a disaggregation backend of SGLang.

Installed beside SGLang, the package is found by the entry point group ``sglang.srt.plugins`` and adds the backend `moai`::

    python -m sglang.launch_server … --disaggregation-mode prefill --disaggregation-transfer-backend moai

The decoder pulls a request's pages from the prefill server and translates them on the way, so page size, number format and tensor
parallel size of the two need not be equal. Settings are environment variables: see `settings`.
"""

from __future__ import annotations

from .plugin import register

__all__ = ["register"]
