"""Prometheus metrics: those of Text Embeddings Inference by their names, and what exits save."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ERRORS = {"validation": "validation", "empty": "validation", "tokenizer": "tokenization", "backend": "inference",
          "unsupported": "model_type", "too_large": "batch_size"}  # fmt: skip


class Metrics:
    """The metrics of one server. models: by name; totals of their schedulers are read when metrics are asked for."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.count = Counter("te_request_count", "Requests.", ["method"], **made)
        self.success = Counter("te_request_success", "Requests that were answered.", ["method"], **made)
        self.failure = Counter("te_request_failure", "Requests that were not answered.", ["err"], **made)
        self.duration = Histogram("te_request_duration", "Seconds per request.", buckets=SECONDS, **made)
        self.stages = {
            stage: Histogram(
                f"te_request_{stage}_duration", f"Seconds of {stage} per request.", buckets=SECONDS, **made
            )
            for stage in ("tokenization", "queue", "inference")
        }
        self.registry.register(_Totals(models))

    def answered(self, method: str, answer: Any) -> None:
        self.stages["tokenization"].observe(answer.tokenisation)
        self.stages["queue"].observe(answer.queue)
        self.stages["inference"].observe(answer.inference)

    def succeeded(self, method: str, seconds: float) -> None:
        self.count.labels(method).inc()
        self.success.labels(method).inc()
        self.duration.observe(seconds)

    def failed(self, kind: str) -> None:
        self.failure.labels(ERRORS.get(kind, kind)).inc()

    def text(self) -> bytes:
        """In Prometheus' text format, under the very names of Text Embeddings Inference, which have no `_total`."""
        text = re.sub(rb"\b(te_\w+)_total\b", rb"\1", generate_latest(self.registry))
        return b"".join(line for line in text.splitlines(keepends=True) if b"_created" not in line)


class _Totals:
    """What schedulers have counted."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        for name, help, read in (
            ("te_queue_size", "Rows that wait for the model.", lambda s: s.queue.rows),
            ("pfengine_batches_under_way", "Batches that go through the model now.", lambda s: s.busy),
            ("te_batch_next_size", "Rows of an average batch.",
             lambda s: s.totals.batch_rows / max(1, s.totals.batches)),
            ("te_batch_next_tokens", "Tokens of an average batch.",
             lambda s: s.totals.batch_tokens / max(1, s.totals.batches)),
            ("pfengine_layer_speedup", "sum(n m_i) / sum(i m_i) over all rows.", lambda s: s.totals.layer_speedup),
            ("pfengine_exit_drift", "Population stability index of recent exit layers against the calibration's.",
             lambda s: s.totals.drift.index),
        ):  # fmt: skip
            gauge = GaugeMetricFamily(name, help, labels=["model"])
            for model, served in self.models.items():
                gauge.add_metric([model], read(served.scheduler))
            yield gauge
        for name, help, field in (
            ("pfengine_batches", "Batches that went through the model.", "batches"),
            ("pfengine_tokens_computed", "Tokens times layers that were computed.", "tokens_computed"),
            ("pfengine_tokens_saved", "Tokens times layers that exits have saved.", "tokens_saved"),
            ("pfengine_deadline_exits", "Rows that left because of a deadline.", "hurried"),
            ("pfengine_engine_restarts", "Starts of the engine's thread after a crash.", "crashes"),
        ):
            counter = CounterMetricFamily(name, help, labels=["model"])
            for model, served in self.models.items():
                counter.add_metric([model], getattr(served.scheduler.totals, field))
            yield counter
        exits = CounterMetricFamily("pfengine_exit_rows", "Rows that left after a layer.", labels=["model", "layer"])
        for model, served in self.models.items():
            counts: np.ndarray = served.scheduler.totals.exits
            for layer, count in enumerate(counts.tolist()[1:], 1):
                exits.add_metric([model, str(layer)], count)
        yield exits
