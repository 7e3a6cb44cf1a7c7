"""OpenTelemetry spans: one per request, and in it one per stage. They hold counts and layers, and no text."""

from __future__ import annotations

import time
from typing import Any

from .._version import __version__
from ..errors import ConfigError
from .endpoint import Call
from .served import STAGES


class Tracer:
    """Writes spans to a provider of OpenTelemetry.

    A request's span has the name of its method, is a child of the span that its `traceparent` header names, and has the
    attributes pfengine.model, pfengine.rows, pfengine.tokens and pfengine.exit_layers (the mean over rows). Its
    children are the stages.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("pfengine.serving", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, call: Call, failure: str | None) -> None:
        """Write the spans of a request that is over; failure: what went wrong."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now = time.time_ns()
        begin = now - int(1e9 * (time.perf_counter() - call.started))
        above = self._propagator.extract({} if call.request is None else dict(call.request.headers))
        span = self._tracer.start_span(call.method, above, SpanKind.SERVER, start_time=begin)
        for model, answer in call.answers:
            left = answer.exit_layers[answer.exit_layers > 0]
            span.set_attributes({
                "pfengine.model": model,
                "pfengine.rows": len(answer.exit_layers),
                "pfengine.tokens": sum(answer.tokens),
                "pfengine.exit_layers": float(left.mean()) if len(left) else 0.0,
            })  # fmt: skip
            at = int(1e9 * answer.arrived_at)
            for stage in STAGES:
                child = self._tracer.start_span(stage, set_span_in_context(span), start_time=at)
                at += int(1e9 * getattr(answer, stage))
                child.end(at)
        if failure is not None:
            span.set_status(Status(StatusCode.ERROR, failure))
        span.end(now)


def exporting(endpoint: str, service: str) -> Any:
    """A provider whose spans go to a collector by OTLP over HTTP: endpoint, such as http://localhost:4318.

    Raises ConfigError where the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"tracing needs more packages ({error.name} is missing): pip install 'pfengine[otel]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return provider
