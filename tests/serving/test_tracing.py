"""A span per request, with its stages, and no text in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pfengine
from pfengine.serving.limits import Limits
from pfengine.serving.server import served
from pfengine.serving.tracing import Tracer

from .conftest import WAIT, Client, port_of, running

memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
TEXT = "a charming and often affecting journey"
ABOVE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def traced() -> Iterator[tuple[Client, Any]]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    kept = memory.InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    engine, limits = pfengine.load("sst2", precision="fp32"), Limits(max_client_batch_size=4)
    with running({"sst2": served("sst2", engine, limits)}, limits) as server:
        server.config.app.state.serving.observers = [Tracer(provider)]  # type: ignore[union-attr]
        yield Client(port_of(server)), kept


def finished(kept: Any, spans: int) -> Any:
    """They are written once the answer has been sent."""
    end = time.monotonic() + WAIT
    while len(kept.get_finished_spans()) < spans and time.monotonic() < end:
        time.sleep(0.001)
    return kept.get_finished_spans()


def test_a_request_and_its_stages(traced: tuple[Client, Any]) -> None:
    client, kept = traced
    _, _, headers = client.ask("/predict", {"inputs": [[TEXT], ["dull"]]}, traceparent=ABOVE)
    *stages, request = finished(kept, 4)
    assert [stage.name for stage in stages] == ["tokenisation", "queue", "inference"]
    assert request.name == "predict"
    assert format(request.context.trace_id, "032x") == ABOVE.split("-")[1]
    assert format(request.parent.span_id, "016x") == ABOVE.split("-")[2]
    layers = [int(layer) for layer in headers["x-exit-layers"].split(",")]
    assert request.attributes["pfengine.exit_layers"] == sum(layers) / 2
    assert (request.attributes["pfengine.rows"], request.attributes["pfengine.model"]) == (2, "sst2")
    for stage, following in zip(stages, stages[1:], strict=False):
        assert stage.parent.span_id == request.context.span_id
        assert stage.end_time == following.start_time
    slack = 2_000_000  # ns: the clock of the wall is read twice
    assert request.start_time - slack <= stages[0].start_time <= stages[-1].end_time <= request.end_time + slack
    assert all(word not in json.dumps([span.to_json() for span in (*stages, request)]) for word in ("charming", "dull"))


def test_a_request_that_fails(traced: tuple[Client, Any]) -> None:
    client, kept = traced
    assert client.ask("/predict", {"inputs": [["a"]] * 5})[0] == 422
    (request,) = finished(kept, 1)
    assert (request.status.is_ok, request.status.description) == (False, "status 422")
    client.ask("/health")
    assert len(kept.get_finished_spans()) == 1
