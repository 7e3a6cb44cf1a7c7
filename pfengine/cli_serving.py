"""`pfengine serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_options import Device, MaxLength, Precision, Speedup, Threshold


def serve(
    checkpoints: Annotated[list[str], typer.Argument(help="Checkpoints, or bundled ones by name.")],
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", help="0: any free one.")] = 3000,
    grpc_port: Annotated[int, typer.Option(envvar="GRPC_PORT", help="0: any free one; -1: no gRPC.")] = 8001,
    served_model_name: Annotated[
        list[str] | None, typer.Option(envvar="SERVED_MODEL_NAME", help="Its name; once per checkpoint.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="API_KEY", help="What clients send as Bearer token.")] = None,
    max_concurrent_requests: Annotated[int, typer.Option(envvar="MAX_CONCURRENT_REQUESTS")] = 512,
    max_batch_tokens: Annotated[int, typer.Option(envvar="MAX_BATCH_TOKENS")] = 16384,
    max_batch_requests: Annotated[int | None, typer.Option(envvar="MAX_BATCH_REQUESTS")] = None,
    max_client_batch_size: Annotated[int, typer.Option(envvar="MAX_CLIENT_BATCH_SIZE")] = 32,
    payload_limit: Annotated[int, typer.Option(envvar="PAYLOAD_LIMIT", help="Bytes of a request's body.")] = 2_000_000,
    auto_truncate: Annotated[
        bool,
        typer.Option(envvar="AUTO_TRUNCATE", help="Cut rows that are too long, unless the request says otherwise."),
    ] = True,
    request_timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 30.0,
    grace: Annotated[float, typer.Option(help="Seconds that requests have to finish after SIGTERM.")] = 30.0,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(envvar="OTLP_ENDPOINT", help="Collector of OpenTelemetry for a span per request, over HTTP."),
    ] = None,
    otlp_service_name: Annotated[str, typer.Option(envvar="OTLP_SERVICE_NAME")] = "pfengine",
    json_output: Annotated[
        bool,
        typer.Option("--json-output", envvar="JSON_OUTPUT", help="Logs as JSON, with a line per request."),
    ] = False,
    criterion: Annotated[str | None, typer.Option(help="When rows exit, such as entropy:0.3 or never.")] = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: MaxLength = None,
) -> None:
    """Serve checkpoints over HTTP, as Text Embeddings Inference, vLLM, Infinity and KServe do."""
    from .errors import ConfigError

    try:
        from .serving.limits import Limits
        from .serving.server import serve as run
    except ImportError as error:
        raise ConfigError(
            f"serving needs more packages ({error.name} is missing): pip install 'pfengine[serve]'"
        ) from None
    try:
        limits = Limits(
            max_concurrent_requests=max_concurrent_requests,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
            max_client_batch_size=max_client_batch_size,
            payload_limit=payload_limit,
            auto_truncate=auto_truncate,
            request_timeout=request_timeout,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    run(
        checkpoints,
        names=served_model_name or (),
        host=host,
        port=port,
        grpc_port=None if grpc_port < 0 else grpc_port,
        limits=limits,
        api_key=api_key,
        grace=grace,
        otlp_endpoint=otlp_endpoint,
        otlp_service_name=otlp_service_name,
        json_output=json_output,
        criterion=criterion,
        threshold=threshold,
        speedup=speedup,
        device=device,
        precision=precision,
        max_length=max_length,
    )
