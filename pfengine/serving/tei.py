"""The interface of Text Embeddings Inference, and what huggingface_hub's InferenceClient sends to the same address."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from .._version import __version__
from ..answers import probabilities
from .endpoint import Call, Endpoint
from .failures import Failure, check_rows
from .requests import Knobbed, best_documents, best_first, check_ranks
from .served import Answer, Served
from .shapes import Health, Info, Label, Token

Texts = Annotated[list[str], Field(min_length=1, max_length=2)]
ERRORS = {  # status and name of each kind of failure
    "empty": (400, "Empty"),
    "validation": (422, "Validation"),
    "tokenizer": (422, "Tokenizer"),
    "too_large": (413, "Validation"),
    "overloaded": (429, "Overloaded"),
    "deadline": (504, "Overloaded"),
    "backend": (424, "Backend"),
    "unhealthy": (503, "Unhealthy"),
    "unauthorized": (401, "Validation"),
    "unknown_model": (404, "Validation"),
    "unsupported": (424, "Backend"),
}


class Parameters(BaseModel):
    """Of InferenceClient.text_classification."""

    model_config = ConfigDict(extra="ignore", strict=True)
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, Field(ge=1, le=100_000)] | None = None


class PredictRequest(Knobbed):
    inputs: str | Texts | Annotated[list[Texts], Field(min_length=1)] = Field(
        description="A text; a pair [text, text]; or a batch [[text], [text, text], ...]."
    )
    truncate: bool | None = None
    truncation_direction: Literal["Right", "Left", "right", "left"] = "Right"
    raw_scores: bool = False
    parameters: Parameters | None = Field(None, description="As InferenceClient sends them; the answer is nested then.")


class RerankRequest(Knobbed):
    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Literal["Right", "Left", "right", "left"] = "Right"
    raw_scores: bool = False
    return_text: bool = False
    top_n: Annotated[int, Field(gt=0, le=1_000_000)] | None = Field(
        None, description="So many of the best; what only this server understands."
    )


class TokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    inputs: str | list[str]
    add_special_tokens: bool = True


def errors(failure: Failure) -> tuple[int, Any]:
    status, name = ERRORS[failure.kind]
    return status, {"error": failure.message, "error_type": name}


async def predict(call: Call, body: PredictRequest) -> Any:
    """Labels of a text or of a batch, all of them, best first."""
    model, given = call.state.model(), body.inputs
    nested = isinstance(given, list) and isinstance(given[0], list)
    rows = [_row(texts) for texts in (given if nested else [given])]
    _check_direction(body.truncation_direction, model)
    answer = await call.answer(model, rows, body.knobs(body.truncate), one=True)
    parameters = body.parameters
    scores = _scores(model, answer, body.raw_scores, parameters)
    top = None if parameters is None else parameters.top_k
    found = [_labels(model, row, top) for row in scores]
    return found if nested or parameters is not None else found[0]


async def rerank(call: Call, body: RerankRequest) -> Any:
    """Texts by their score for a query, best first."""
    model = call.state.model()
    check_ranks(model)
    if not body.texts:
        raise Failure("empty", "`texts` cannot be empty")
    _check_direction(body.truncation_direction, model)
    rows = [(body.query, text) for text in body.texts]
    answer = await call.answer(model, rows, body.knobs(body.truncate, body.top_n), one=True)
    scores = _scores(model, answer, body.raw_scores, None)[:, 0]
    return [
        {"index": i}
        | ({"text": body.texts[i]} if body.return_text else {})
        | {"score": float(scores[i]), "exit_layer": int(answer.exit_layers[i])}
        for i in best_documents(answer, body.top_n)
    ]


async def tokenize(call: Call, body: TokenizeRequest) -> Any:
    """The tokens of texts."""
    model = call.state.model()
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_rows(len(texts), call.state.limits.max_client_batch_size)
    return await model.tokens(texts, body.add_special_tokens)


async def info(call: Call) -> Any:
    """What the server answers with, and its limits."""
    model, limits = call.state.model(), call.state.limits
    names = dict(enumerate(model.labels))
    kind = "reranker" if len(names) == 1 else "classifier"
    return {
        "model_id": model.name,
        "model_sha": model.engine.mark,
        "model_dtype": model.engine.precision,
        "served_model_name": model.name,
        "model_type": {kind: {"id2label": names, "label2id": {name: i for i, name in names.items()}}},
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": model.max_length,
        "max_batch_tokens": limits.max_batch_tokens,
        "max_batch_requests": limits.max_batch_requests,
        "max_client_batch_size": limits.max_client_batch_size,
        "auto_truncate": limits.auto_truncate,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "layers": model.engine.num_layers,
        "exit_layers": list(model.engine.exit_layers),
        "criterion": repr(model.engine.criterion),
    }


async def ping(call: Call) -> Any:
    """200 where the model has just answered, else 503."""
    await call.state.check_ready()
    return Response(status_code=200)


async def health(call: Call) -> Any:
    """200 where the model has just answered, else 503. Infinity's client reads the time, others the status alone."""
    await ping(call)
    return {"unix": time.time()}


async def metrics(call: Call) -> Any:
    """Metrics in Prometheus' text format."""
    return Response(call.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _row(texts: Any) -> Any:
    texts = [texts] if isinstance(texts, str) else texts
    if not any(texts):
        raise Failure("empty", "`inputs` cannot be empty")
    return texts[0] if len(texts) == 1 else tuple(texts)


def _check_direction(direction: str, model: Served) -> None:
    if direction.lower() != model.engine.tokenizer.side:
        raise Failure("validation", f"truncation_direction is {direction}; the tokenizer cuts on the other side")


def _scores(model: Served, answer: Answer, raw: bool, parameters: Parameters | None) -> np.ndarray:
    """As TEI softmax of several labels, sigmoid of one, whatever the model itself says, unless the client chooses."""
    function = None if parameters is None else parameters.function_to_apply
    if raw or function == "none":
        return answer.logits
    one = len(model.labels) == 1 if function is None else function == "sigmoid"
    return probabilities(answer.logits, "multi_label_classification" if one else "single_label_classification")


def _labels(model: Served, scores: np.ndarray, top: int | None) -> list[dict[str, Any]]:
    return [{"score": float(scores[i]), "label": model.labels[i]} for i in best_first(scores, top)]


ENDPOINTS = (
    Endpoint(
        ("/predict", "/", "/invocations"), predict, errors, PredictRequest, method="predict", summary="Classify",
        answer=list[Label] | list[list[Label]],
    ),
    Endpoint(
        ("/tokenize",), tokenize, errors, TokenizeRequest, method="tokenize", summary="Tokenise",
        answer=list[list[Token]],
    ),
    Endpoint(("/info",), info, errors, verb="GET", summary="Model and limits", answer=Info),
    Endpoint(("/health",), health, errors, verb="GET", summary="Health", answer=Health),
    Endpoint(("/", "/ping"), ping, errors, verb="GET", summary="Health, without a body"),
    Endpoint(("/metrics",), metrics, errors, verb="GET", summary="Prometheus metrics", media=("text/plain",)),
)  # fmt: skip
