"""The Open Inference Protocol over gRPC, in the event loop of the HTTP server and over the same models."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from . import open_inference, tensors
from .endpoint import Call, State, validated
from .failures import Failure
from .grpc_messages import MESSAGES, METHODS, SERVICE
from .open_inference import InferRequest
from .served import Served

log = logging.getLogger("pfengine.serving")

CODES = {
    "empty": grpc.StatusCode.INVALID_ARGUMENT,
    "validation": grpc.StatusCode.INVALID_ARGUMENT,
    "tokenizer": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
    "backend": grpc.StatusCode.INTERNAL,
    "unhealthy": grpc.StatusCode.UNAVAILABLE,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "unsupported": grpc.StatusCode.INVALID_ARGUMENT,
}
OPEN_METHODS = ("ServerLive", "ServerReady")  # need no key
MANY_STREAMS = 1024  # of one connection


def create_server(state: State, api_key: str | None = None) -> Any:
    """A `grpc.aio` server without a port. api_key: what calls must carry as "authorization: Bearer ..."."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", state.limits.payload_limit),
            ("grpc.max_concurrent_streams", MANY_STREAMS),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.so_reuseport", 0),
        ]
    )
    service = _Service(state, api_key)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            service.method(name),
            request_deserializer=MESSAGES[f"{name}Request"].FromString,
            response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server


class _Service:
    def __init__(self, state: State, api_key: str | None) -> None:
        self.state = state
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()

    def method(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        handler = getattr(self, name)

        async def run(request: Any, context: Any) -> Any:
            try:
                if name not in OPEN_METHODS:
                    self._check_key(context)
                return MESSAGES[f"{name}Response"](**await handler(request))
            except Failure as failure:
                self.state.metrics.failed(failure.kind)
                await context.abort(CODES[failure.kind], failure.message)
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("a call of %s failed", name)
                self.state.metrics.failed("backend")
                await context.abort(grpc.StatusCode.INTERNAL, "the request failed inside the server")

        return run

    def _check_key(self, context: Any) -> None:
        if self.expected is None:
            return
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        given = [value.encode() if isinstance(value, str) else value for value in given]
        if len(given) != 1 or not hmac.compare_digest(given[0], self.expected):
            raise Failure("unauthorized", "the call carries no valid key")

    async def ServerLive(self, request: Any) -> dict[str, Any]:
        return {"live": True}

    async def ServerReady(self, request: Any) -> dict[str, Any]:
        return await self._ready()

    async def ModelReady(self, request: Any) -> dict[str, Any]:
        open_inference.check_version(request.version or "1")
        return await self._ready(self.state.model(request.name))

    async def _ready(self, model: Served | None = None) -> dict[str, Any]:
        try:
            await self.state.check_ready(model)
        except Failure:
            return {"ready": False}
        return {"ready": True}

    async def ServerMetadata(self, request: Any) -> dict[str, Any]:
        return open_inference.server_metadata()

    async def ModelMetadata(self, request: Any) -> dict[str, Any]:
        open_inference.check_version(request.version or "1")
        return open_inference.metadata_of(self.state.model(request.name))

    async def ModelInfer(self, request: Any) -> dict[str, Any]:
        open_inference.check_version(request.model_version or "1")
        model, call = self.state.model(request.model_name), Call(self.state, None, "infer")
        try:
            with self.state.entered("infer") as succeeded:
                rows, body = request_of(request)
                answer = await call.answer(model, rows, open_inference.knobs_of(body.parameters), one=True)
                outputs = list(open_inference.answered(model, answer, body))
                succeeded()
        except Failure as failure:
            call.over(failure.kind)
            raise
        call.over()
        found: dict[str, Any] = {"model_name": model.name, "model_version": "1", "id": request.id}
        found["outputs"] = [
            {"name": name, "datatype": kind, "shape": value.shape}
            | ({} if request.raw_input_contents else {"contents": _contents(kind, value)})
            for name, kind, value, _ in outputs
        ]
        if request.raw_input_contents:  # as the request, so the answer
            found["raw_output_contents"] = [tensors.to_binary(kind, value) for _, kind, value, _ in outputs]
        return found


def request_of(message: Any) -> tuple[list[Any], InferRequest]:
    """The rows of a ModelInferRequest, and the rest of it. Raises Failure where it makes no sense."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Failure("validation", f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    body: InferRequest = validated(
        InferRequest,
        {
            "id": message.id or None,
            "parameters": _parameters(message.parameters),
            "inputs": [_input(tensor, raw[i] if raw else None) for i, tensor in enumerate(message.inputs)],
            "outputs": [{"name": o.name, "parameters": _parameters(o.parameters)} for o in message.outputs] or None,
        },
    )
    return open_inference.rows_of(body.inputs, memoryview(b"".join(raw))), body


def _parameters(given: Any) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for key, value in given.items()}


def _input(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    """An input as JSON has it; the binary data of all inputs follow."""
    found: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
    if raw is not None:
        return found | {"parameters": {"binary_data_size": len(raw)}}
    return found | {"data": [tensors.text(tensor.name[:200], each) for each in tensor.contents.bytes_contents]}


def _contents(kind: str, value: np.ndarray) -> dict[str, Any]:
    flat = value.ravel().tolist()
    if kind == "BYTES":
        return {"bytes_contents": [text.encode("utf-8", "replace") for text in flat]}
    return {{"FP32": "fp32_contents", "INT64": "int64_contents"}[kind]: flat}
