"""The class that vLLM loads, once in the scheduler's process and once in each worker's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from . import handles, settings
from .messages import MoaiHandshake, MoaiMetadata
from .scheduler import Scheduler
from .stats import MoaiPromMetrics, MoaiStats

if TYPE_CHECKING:
    from .worker import Worker


class MoaiConnector(KVConnectorBase_V1, SupportsHMA):
    """Moves the caches of requests between engines that may be unlike. The two halves are in `scheduler` and `worker`."""

    _cache_hit_source = CacheHitSource.P2P
    # One of them is there, by role.
    _scheduler: Scheduler
    _worker: Worker

    def __init__(self, vllm_config, role: KVConnectorRole, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        handles.check_engine_name(transfer.engine_id)
        known = settings.parse(transfer.kv_connector_extra_config, vllm_config.parallel_config.data_parallel_index)
        self._half: Scheduler | Worker
        if role is KVConnectorRole.SCHEDULER:
            self._half = self._scheduler = Scheduler(vllm_config, known, kv_cache_config)
        else:
            # Loads the fabric's library, which a process that forks workers has no use for.
            from .worker import Worker

            self._half = self._worker = Worker(vllm_config, known, kv_cache_config)

    # Scheduler's process

    def bind_kv_cache_manager(self, kv_cache_manager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._scheduler.bind(kv_cache_manager)

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], MoaiHandshake]) -> None:
        self._scheduler.meet(metadata)

    def on_new_request(self, request) -> None:
        self._scheduler.new_request(request)

    def get_loaded_kv_cache_group_ids(self, request) -> tuple[int, ...]:
        return self._kv_cache_config.transfer_group_ids

    def get_num_new_matched_tokens(self, request, num_computed_tokens: int) -> tuple[int, bool]:
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output) -> MoaiMetadata:
        return self._scheduler.orders(scheduler_output)

    def update_connector_output(self, connector_output) -> None:
        self._scheduler.done(connector_output)

    def request_finished(self, request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler.finished(request)

    def request_finished_all_groups(self, request, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler.finished(request)

    def has_pending_push_work(self) -> bool:
        return self._scheduler.is_busy()

    # Worker's process

    def register_kv_caches(self, kv_caches) -> None:
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> MoaiHandshake | None:
        return self._worker.handshake()

    def start_load_kv(self, forward_context, **kwargs: Any) -> None:
        self._worker.begin(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Requests whose cache is under way are not scheduled: there is nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer, attn_metadata, **kwargs: Any) -> None:
        """Pages are read where they lie."""

    def wait_for_save(self) -> None:
        self._worker.computed(self._get_connector_metadata())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        idle = self.has_connector_metadata() and self._get_connector_metadata().idle
        return self._worker.results(idle)

    def build_connector_worker_meta(self):
        return self._worker.worker_metadata()

    # Both

    def shutdown(self) -> None:
        self._half.close()

    def get_kv_connector_stats(self) -> MoaiStats | None:
        return self._worker.stats.take() if self.role is KVConnectorRole.WORKER else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MoaiStats:
        return MoaiStats(data=data) if data is not None else MoaiStats()

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues) -> MoaiPromMetrics:
        return MoaiPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
