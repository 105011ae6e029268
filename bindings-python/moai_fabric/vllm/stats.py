"""What vLLM logs and exports of the connector, by its own interfaces."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

# Lists of samples, and counts.
SAMPLES = ("seconds", "bytes")
COUNTS = ("failed_handshakes", "expired", "recomputed")


@dataclass
class MoaiStats(KVConnectorStats):
    """One interval: seconds and bytes of each pull that was committed, and counts of what was not as wished."""

    def __post_init__(self):
        if not self.data:
            self.reset()

    def reset(self) -> None:
        self.data: dict[str, Any] = {**{name: [] for name in SAMPLES}, **{name: 0 for name in COUNTS}, "failed": {}}

    def committed(self, seconds: float, written: int) -> None:
        self.data["seconds"].append(seconds)
        self.data["bytes"].append(written)

    def failed(self, reason: str) -> None:
        self.data["failed"][reason] = self.data["failed"].get(reason, 0) + 1

    def count(self, name: str) -> None:
        self.data[name] += 1

    def take(self) -> "MoaiStats | None":
        """What there is, if there is anything, and begins anew."""
        if self.is_empty():
            return None
        taken = copy.copy(self)
        self.reset()
        return taken

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name in SAMPLES:
            self.data[name].extend(other.data[name])
        for name in COUNTS:
            self.data[name] += other.data[name]
        for reason, count in other.data["failed"].items():
            self.data["failed"][reason] = self.data["failed"].get(reason, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        seconds, written = self.data["seconds"], self.data["bytes"]
        total = sum(seconds)
        return {
            "Num successful transfers": len(seconds),
            "Avg xfer time (ms)": round(total / len(seconds) * 1e3, 3) if seconds else 0,
            "Avg MB per transfer": round(sum(written) / len(written) / 2**20, 3) if written else 0,
            "Throughput (MB/s)": round(sum(written) / total / 2**20, 3) if total else 0,
            "Num failed transfers": sum(self.data["failed"].values()),
            "Num failed handshakes": self.data["failed_handshakes"],
            "Num recomputed reqs": self.data["recomputed"],
            "Num KV expired reqs": self.data["expired"],
        }


class MoaiPromMetrics(KVConnectorPromMetrics):
    """The same for Prometheus."""

    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._labels = per_engine_labelvalues

        def histogram(name: str, documentation: str, buckets: list[float]):
            return self._histogram_cls(name=name, documentation=documentation, buckets=buckets, labelnames=labelnames)

        self._samples = {
            "seconds": histogram(
                "vllm:moai_xfer_time_seconds",
                "From a pull's begin to its commit.",
                [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
            ),
            "bytes": histogram(
                "vllm:moai_bytes_transferred",
                "Bytes of rows that a committed pull wrote into this worker's pages.",
                [2 ** (10 + i) for i in range(1, 25, 2)],
            ),
        }

        def counter(name: str, documentation: str, more: tuple[str, ...] = ()):
            return self._counter_cls(name=name, documentation=documentation, labelnames=[*labelnames, *more])

        self._counts = {
            "failed_handshakes": counter("vllm:moai_num_failed_handshakes", "Prefill engines that could not be asked or not be used."),
            "expired": counter("vllm:moai_num_kv_expired_reqs", "Requests of this prefill engine whose lease ran out before they were pulled."),
            "recomputed": counter("vllm:moai_num_recomputed_reqs", "Requests whose prompt is computed here because its cache did not come."),
        }
        self._failed = counter("vllm:moai_num_failed_transfers", "Pulls that were not committed, by reason.", ("reason",))

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self._labels[engine_idx]
        for name, metric in self._samples.items():
            for sample in transfer_stats_data[name]:
                metric.labels(*labels).observe(sample)
        for name, metric in self._counts.items():
            if transfer_stats_data[name]:
                metric.labels(*labels).inc(transfer_stats_data[name])
        for reason, count in transfer_stats_data["failed"].items():
            self._failed.labels(*labels, reason).inc(count)
