"""vLLM's KV connector over MoAI Fabric.

vLLM loads it by path; nothing of vLLM is imported before that:

    --kv-transfer-config '{"kv_connector": "MoaiConnector", "kv_connector_module_path": "moai_fabric.vllm",
                           "kv_role": "kv_producer"}'

A request's cache is moved between engines that may differ in page size, layout, element type, tensor and pipeline parallelism. Each
worker probes where its backend really puts rows, describes that, and whatever two descriptions cannot be joined on is refused
with the reason.
"""

__all__ = ["MoaiConnector"]


def __getattr__(name: str):
    if name == "MoaiConnector":
        from .connector import MoaiConnector

        return MoaiConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
