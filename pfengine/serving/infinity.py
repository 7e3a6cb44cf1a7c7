"""Infinity's interface for classification and reranking."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from pydantic import Field

from .endpoint import Call, Endpoint
from .failures import Failure
from .requests import Knobbed, best_documents, best_first, check_ranks
from .served import Answer, Served
from .shapes import InfinityClasses, InfinityModels, InfinityRanks

DEFAULT = "default/not-specified"  # the name that its client sends where it is told none
STATUS = {"empty": 422, "validation": 422, "tokenizer": 422, "too_large": 413, "overloaded": 429, "deadline": 504,
          "backend": 500, "unhealthy": 503, "unauthorized": 401, "unknown_model": 400, "unsupported": 400}  # fmt: skip


class ClassifyRequest(Knobbed):
    input: Annotated[list[str], Field(min_length=1, max_length=2048)]
    model: str = DEFAULT
    raw_scores: bool = False


class RerankRequest(Knobbed):
    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=2048)]
    return_documents: bool = False
    raw_scores: bool = False
    model: str = DEFAULT
    top_n: Annotated[int, Field(gt=0, le=1_000_000)] | None = None


def errors(failure: Failure) -> tuple[int, Any]:
    status = STATUS[failure.kind]
    return status, {"error": {"message": failure.message, "type": None, "param": None, "code": status}}


async def classify(call: Call, body: ClassifyRequest) -> Any:
    """The labels of each text, best first."""
    model = _model(call, body.model)
    answer = await call.answer(model, list(body.input), body.knobs(), one=True)
    scores = answer.logits if body.raw_scores else model.probabilities(answer)
    data = [[{"score": float(row[i]), "label": model.labels[i]} for i in best_first(row)] for row in scores]
    return {"object": "classify", "data": data} | _usage(model, answer)


async def rerank(call: Call, body: RerankRequest) -> Any:
    """Documents by their score for a query, best first."""
    model = _model(call, body.model)
    check_ranks(model)
    rows = [(body.query, document) for document in body.documents]
    answer = await call.answer(model, rows, body.knobs(top_k=body.top_n), one=True)
    scores = (answer.logits if body.raw_scores else model.probabilities(answer, "multi_label_classification"))[:, 0]
    results = [
        {
            "relevance_score": float(scores[i]),
            "index": i,
            "document": body.documents[i] if body.return_documents else None,
            "exit_layer": int(answer.exit_layers[i]),
        }
        for i in best_documents(answer, body.top_n)
    ]
    return {"object": "rerank", "results": results} | _usage(model, answer)


async def models(call: Call) -> Any:
    """The models there are, with what waits for each."""
    data = [
        {
            "id": model.name,
            "stats": {"results_pending": model.scheduler.queue.rows},
            "object": "model",
            "owned_by": "infinity",  # its client takes no other
            "created": model.created,
            "backend": "pfengine",
            "capabilities": ["rerank" if len(model.labels) == 1 else "classify"],
        }
        for model in call.state.models.values()
    ]
    return {"object": "list", "data": data}


def _model(call: Call, name: str) -> Served:
    return call.state.model(None if name == DEFAULT else name)


def _usage(model: Served, answer: Answer) -> dict[str, Any]:
    tokens = sum(answer.tokens)
    return {
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": f"infinity-{uuid.uuid4()}",
        "created": int(time.time()),
    }


ENDPOINTS = (
    Endpoint(
        ("/infinity/classify",),
        classify,
        errors,
        ClassifyRequest,
        method="classify",
        summary="Classify (Infinity)",
        answer=InfinityClasses,
    ),
    Endpoint(
        ("/infinity/rerank",),
        rerank,
        errors,
        RerankRequest,
        method="rerank",
        summary="Rank documents (Infinity)",
        answer=InfinityRanks,
    ),
    Endpoint(
        ("/models", "/infinity/models"), models, errors, verb="GET", summary="Models (Infinity)", answer=InfinityModels
    ),
)
