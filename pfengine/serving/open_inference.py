"""The Open Inference Protocol, version 2 (KServe, Triton, MLServer), with Triton's binary tensors.

Inputs: one of type BYTES with a text per row ("text"; any name where there is no other), and for pairs a second one,
"text_pair". Parameters of a request: threshold, speedup, criterion, deadline_ms. Outputs: "label" BYTES [rows], "score"
FP32 [rows], "probabilities" FP32 [rows, labels], "logits" FP32 [rows, labels] (where asked for), "exit_layer" INT64
[rows]. A BYTES output with the parameter "classification": k has the best k labels as "value:index:label".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from .._version import __version__
from . import tensors
from .bodies import parse_json
from .endpoint import Call, Endpoint, json_response, validated
from .failures import Failure
from .requests import best_first
from .served import Answer, Knobs, Served
from .shapes import InferAnswer, Live, ModelMetadata, Ready, ServerMetadata

HEADER = "inference-header-content-length"
STATUS = {"empty": 400, "validation": 400, "tokenizer": 400, "too_large": 413, "overloaded": 429, "deadline": 504,
          "backend": 500, "unhealthy": 503, "unauthorized": 401, "unknown_model": 404, "unsupported": 400}  # fmt: skip
TYPES = {"label": "BYTES", "score": "FP32", "probabilities": "FP32", "logits": "FP32", "exit_layer": "INT64"}
USUAL = ("label", "score", "probabilities", "exit_layer")  # outputs where none are asked for
Parameters = dict[str, Any]


class InputTensor(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: Annotated[str, Field(max_length=200)]
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class OutputRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: Annotated[str, Field(max_length=200)]
    parameters: Parameters | None = None


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    id: str | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=8)]
    outputs: Annotated[list[OutputRequest], Field(max_length=16)] | None = None


def errors(failure: Failure) -> tuple[int, Any]:
    return STATUS[failure.kind], {"error": failure.message}


async def infer(call: Call) -> Any:
    """Answers to the rows of a request."""
    model = _model(call)
    assert call.request is not None
    header = call.request.headers.get(HEADER)
    length = len(call.body) if header is None else int(header) if header.isdigit() and len(header) < 12 else -1
    if not 0 <= length <= len(call.body):
        raise Failure(
            "validation", f"{HEADER} is {header[:40] if header else header!r}; the body has {len(call.body)} bytes"
        )
    body: InferRequest = validated(InferRequest, parse_json(call.body[:length]))
    rows = rows_of(body.inputs, memoryview(call.body)[length:])
    answer = await call.answer(model, rows, knobs_of(body.parameters), one=True)
    binary_by_default = bool((body.parameters or {}).get("binary_data_output"))
    return response(model, answer, body, call.headers, binary_by_default)


def knobs_of(parameters: Parameters | None) -> Knobs:
    found: dict[str, Any] = {}
    for name, kind in (("threshold", float), ("speedup", float), ("deadline_ms", float), ("criterion", str)):
        value = (parameters or {}).get(name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, str) if kind is str else number):
            raise Failure("validation", f"parameter '{name}' must be a {'string' if kind is str else 'number'}")
        if number and not math.isfinite(_float(name, value)):
            raise Failure("validation", f"parameter '{name}' must be finite")
        found[name] = value[:200] if kind is str else float(value)
    return Knobs(**found)


def _float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Failure("validation", f"parameter '{name}' is too large") from None


def rows_of(inputs: list[InputTensor], rest: memoryview) -> list[Any]:
    """The rows of a request. rest: the binary data after its JSON."""
    texts: dict[str, list[str]] = {}
    for tensor in inputs:
        rest = _read(tensor, rest, texts)
    if len(rest):
        raise Failure("validation", f"there are {len(rest)} bytes after the data of all inputs")
    first = texts.pop("text", None)
    pair = texts.pop("text_pair", None)
    if first is None and len(texts) == 1:
        first = texts.popitem()[1]
    if first is None or texts:
        raise Failure("validation", "give one input of type BYTES, 'text', and for pairs a second one, 'text_pair'")
    if pair is None:
        return list(first)
    if len(pair) != len(first):
        raise Failure("validation", f"'text' has {len(first)} rows and 'text_pair' has {len(pair)}")
    return list(zip(first, pair, strict=True))


def _read(tensor: InputTensor, rest: memoryview, texts: dict[str, list[str]]) -> memoryview:
    """Put the texts of an input into `texts`; returns the binary data after its own."""
    name = tensor.name
    if tensor.datatype != "BYTES":
        raise Failure("validation", f"input '{name}' has the type {tensor.datatype[:20]!r}; texts are BYTES")
    if name in texts:
        raise Failure("validation", f"input '{name}' is there twice")
    elements = tensors.count(name, tensor.shape)
    if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise Failure("validation", f"input '{name}' has the shape {tensor.shape}; expected [rows] or [rows, 1]")
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        found = tensors.flat(name, tensor.data, elements)
        if not all(isinstance(value, str) for value in found):
            raise Failure("validation", f"input '{name}' has data that are not strings")
        texts[name] = found
        return rest
    if type(size) is not int or not 0 <= size <= len(rest) or tensor.data is not None:
        raise Failure("validation", f"input '{name}': binary_data_size does not fit the body")
    texts[name] = tensors.texts_from_binary(name, rest[:size], elements)
    return rest[size:]


def outputs_of(model: Served, answer: Answer, names: Any) -> dict[str, np.ndarray]:
    probabilities = model.probabilities(answer)
    best = answer.logits.argmax(-1)
    every = {
        "label": lambda: np.array([model.labels[i] for i in best], object),
        "score": lambda: probabilities[np.arange(len(best)), best],
        "probabilities": lambda: probabilities,
        "logits": lambda: answer.logits,
        "exit_layer": lambda: answer.exit_layers,
    }
    if unknown := [name for name in names if name not in every]:
        raise Failure("validation", f"there is no output {unknown[0][:50]!r}; there are {', '.join(every)}")
    return {name: every[name]() for name in names}


def classified(model: Served, scores: np.ndarray, top: int) -> np.ndarray:
    """Triton's classification extension: "value:index:label" of the best labels, object [rows, top]."""
    return np.array([[f"{row[i]:f}:{i}:{model.labels[i]}" for i in best_first(row, top)] for row in scores], object)


def answered(model: Served, answer: Answer, body: InferRequest) -> Iterator[tuple[str, str, np.ndarray, Parameters]]:
    """The outputs that a request asks for: name, datatype, values, parameters of the output."""
    requested = [OutputRequest(name=name) for name in USUAL] if body.outputs is None else body.outputs
    values = outputs_of(model, answer, [output.name for output in requested])
    for output in requested:
        value, parameters = values[output.name], output.parameters or {}
        kind, top = TYPES[output.name], parameters.get("classification")
        if type(top) is int and top > 0 and output.name in ("probabilities", "logits"):
            value, kind = classified(model, value, min(top, len(model.labels))), "BYTES"
        yield output.name, kind, value, parameters


def response(model: Served, answer: Answer, body: InferRequest, headers: dict[str, str], binary: bool) -> Any:
    described, blobs = [], []
    for name, kind, value, parameters in answered(model, answer, body):
        entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(value.shape)}
        if parameters.get("binary_data", binary) is True:
            blob = tensors.to_binary(kind, value)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = value.ravel().tolist()
        described.append(entry)
    found: dict[str, Any] = {"model_name": model.name, "model_version": "1", "outputs": described}
    if body.id is not None:
        found["id"] = body.id
    if not blobs:
        return found
    text = json_response(found).body
    headers[HEADER] = str(len(text))
    return Response(b"".join([bytes(text), *blobs]), 200, headers, "application/octet-stream")


async def live(call: Call) -> Any:
    """200 while the process answers."""
    return {"live": True}


async def ready(call: Call) -> Any:
    """200 where every model answers, else 503."""
    await call.state.check_ready()
    return {"ready": True}


async def model_ready(call: Call) -> Any:
    """200 where this model answers, else 503."""
    model = _model(call)
    await call.state.check_ready(model)
    return {"name": model.name, "ready": True}


async def server(call: Call) -> Any:
    """The server's name, version and extensions."""
    return server_metadata()


def server_metadata() -> dict[str, Any]:
    return {"name": "pfengine", "version": __version__, "extensions": ["classification", "binary_tensor_data"]}


async def model_metadata(call: Call) -> Any:
    """The inputs and outputs of a model."""
    return metadata_of(_model(call))


def metadata_of(model: Served) -> dict[str, Any]:
    labels = len(model.labels)
    shapes = {"label": [-1], "score": [-1], "probabilities": [-1, labels], "logits": [-1, labels], "exit_layer": [-1]}
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": "pfengine",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("text", "text_pair")],
        "outputs": [{"name": name, "datatype": TYPES[name], "shape": shape} for name, shape in shapes.items()],
    }


def _model(call: Call) -> Served:
    assert call.request is not None
    check_version(call.request.path_params.get("version", "1"))
    return call.state.model(call.request.path_params["model"])


def check_version(version: str) -> None:
    if version != "1":
        raise Failure("unknown_model", f"there is no version {version[:20]!r}; there is 1")


def _of_model(suffix: str = "") -> tuple[str, str]:
    return f"/v2/models/{{model}}{suffix}", f"/v2/models/{{model}}/versions/{{version}}{suffix}"


ENDPOINTS = (
    Endpoint(
        _of_model("/infer"),
        infer,
        errors,
        method="infer",
        summary="Infer (Open Inference Protocol)",
        request=InferRequest,
        answer=InferAnswer,
        media=("application/octet-stream",),
    ),
    Endpoint(("/v2/health/live",), live, errors, verb="GET", summary="Is the process alive?", answer=Live),
    Endpoint(("/v2/health/ready",), ready, errors, verb="GET", summary="Is the server ready?", answer=Ready),
    Endpoint(("/v2",), server, errors, verb="GET", summary="Server metadata", answer=ServerMetadata),
    Endpoint(_of_model("/ready"), model_ready, errors, verb="GET", summary="Is the model ready?", answer=Ready),
    Endpoint(_of_model(), model_metadata, errors, verb="GET", summary="Model metadata", answer=ModelMetadata),
)
