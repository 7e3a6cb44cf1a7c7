"""vLLM's interface for classification and scores."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field

from .endpoint import Call, Endpoint
from .failures import Failure
from .requests import Knobbed, best_documents, check_ranks, rows_of_ids
from .served import Answer, Served
from .shapes import VllmClasses, VllmModels, VllmRanks, VllmScores

Ids = Annotated[list[int], Field(min_length=1)]
Texts = str | list[str]
ERRORS = {  # status and type of each kind of failure
    "empty": (400, "BadRequestError"),
    "validation": (400, "BadRequestError"),
    "tokenizer": (400, "BadRequestError"),
    "too_large": (413, "BadRequestError"),
    "overloaded": (429, "RateLimitError"),
    "deadline": (504, "TimeoutError"),
    "backend": (500, "InternalServerError"),
    "unhealthy": (503, "ServiceUnavailableError"),
    "unauthorized": (401, "AuthenticationError"),
    "unknown_model": (404, "NotFoundError"),
    "unsupported": (400, "BadRequestError"),
}


class Pooling(Knobbed):
    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        None, description="-1: cut at the model's limit; a number: rows of more tokens are refused."
    )
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None
    priority: int = 0


class ClassifyRequest(Pooling):
    input: Texts | Ids | list[Ids]


class ScoreRequest(Pooling):
    """One text with one or many, or as many with as many."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


class RerankRequest(Pooling):
    query: str
    documents: list[str]
    top_n: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="So many of the best; 0: all.")


def errors(failure: Failure) -> tuple[int, Any]:
    status, kind = ERRORS[failure.kind]
    return status, {"error": {"message": failure.message, "type": kind, "param": None, "code": status}}


async def classify(call: Call, body: ClassifyRequest) -> Any:
    """The probabilities of all labels for each text or list of token ids."""
    model, given = call.state.model(body.model), body.input
    single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    answer = await _answer(call, model, rows_of_ids([given] if single else given), body)
    scores = answer.logits if body.use_activation is False else model.probabilities(answer)
    data = [
        {
            "index": i,
            "label": model.labels[int(row.argmax())],
            "probs": row.tolist(),
            "num_classes": len(row),
            "exit_layer": int(answer.exit_layers[i]),
        }
        for i, row in enumerate(scores)
    ]
    return _response("classify", model, answer) | {"data": data}


async def score(call: Call, body: ScoreRequest) -> Any:
    """The score of each pair."""
    model = call.state.model(body.model)
    check_ranks(model)
    first = _first(body.queries, body.text_1, body.data_1)
    second = _first(body.documents, body.items, body.text_2, body.data_2)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise Failure("validation", f"there are {len(first)} texts for {len(second)}; give one, or as many")
    answer = await _answer(call, model, list(zip(first, second, strict=True)), body)
    scores = _scores(model, answer, body)
    data = [
        {"index": i, "object": "score", "score": float(value), "exit_layer": int(answer.exit_layers[i])}
        for i, value in enumerate(scores)
    ]
    return _response("score", model, answer) | {"data": data}


async def rerank(call: Call, body: RerankRequest) -> Any:
    """Documents by their score for a query, best first."""
    model = call.state.model(body.model)
    check_ranks(model)
    top = body.top_n or None
    answer = await _answer(call, model, [(body.query, document) for document in body.documents], body, top)
    scores = _scores(model, answer, body)
    results = [
        {
            "index": i,
            "document": {"text": body.documents[i], "multi_modal": None},
            "relevance_score": float(scores[i]),
            "exit_layer": int(answer.exit_layers[i]),
        }
        for i in best_documents(answer, top)
    ]
    return _response("rerank", model, answer) | {"results": results}


async def models(call: Call) -> Any:
    """The models there are."""
    data = [
        {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "pfengine",
            "root": model.name,
            "parent": None,
            "max_model_len": model.max_length,
        }
        for model in call.state.models.values()
    ]
    return {"object": "list", "data": data}


async def _answer(call: Call, model: Served, rows: list[Any], body: Pooling, top_k: int | None = None) -> Answer:
    cut = body.truncate_prompt_tokens
    if cut is not None and cut not in (-1, model.max_length):
        raise Failure("validation", f"truncate_prompt_tokens is {cut}; it must be -1 or {model.max_length}")
    if body.truncation_side not in (None, model.engine.tokenizer.side):
        raise Failure("validation", f"truncation_side is {body.truncation_side}; the tokenizer cuts on the other side")
    return await call.answer(model, rows, body.knobs(True if cut is not None else None, top_k), one=True)


def _scores(model: Served, answer: Answer, body: Pooling) -> Any:
    """float32 [rows]: logits, or their sigmoid."""
    raw = body.use_activation is False
    return (answer.logits if raw else model.probabilities(answer, "multi_label_classification"))[:, 0]


def _first(*given: Texts | None) -> list[str]:
    found = [texts for texts in given if texts is not None]
    if len(found) != 1:
        raise Failure("validation", "give one of queries, text_1, data_1, and one of documents, items, text_2, data_2")
    return [found[0]] if isinstance(found[0], str) else found[0]


def _response(kind: str, model: Served, answer: Answer) -> dict[str, Any]:
    tokens = sum(answer.tokens)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


ENDPOINTS = (
    Endpoint(
        ("/v1/classify",),
        classify,
        errors,
        ClassifyRequest,
        method="classify",
        summary="Classify (vLLM)",
        answer=VllmClasses,
    ),
    Endpoint(
        ("/score", "/v1/score"),
        score,
        errors,
        ScoreRequest,
        method="score",
        summary="Scores of pairs (vLLM)",
        answer=VllmScores,
    ),
    Endpoint(
        ("/v1/rerank", "/v2/rerank"),
        rerank,
        errors,
        RerankRequest,
        method="rerank",
        summary="Rank documents (vLLM)",
        answer=VllmRanks,
    ),
    Endpoint(("/v1/models",), models, errors, verb="GET", summary="Models (vLLM)", answer=VllmModels),
)
