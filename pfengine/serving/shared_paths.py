"""Addresses that several servers have, with different bodies: what a body holds says whose request it is."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, RootModel

from . import infinity, tei, vllm
from .endpoint import Call, Endpoint, validated
from .failures import Failure
from .shapes import InfinityClasses, InfinityRanks, TeiRank, VllmClasses, VllmRanks


class Either(RootModel[dict[str, Any]]):
    model_config = ConfigDict(strict=True)


class ClassifyRequest(Either):
    """vLLM's request, or with `raw_scores` Infinity's."""


class RerankRequest(Either):
    """TEI's request with `texts`; Infinity's with `return_documents` or `raw_scores`; else vLLM's."""


_INFINITY = ("raw_scores", "return_documents")


def _classify(body: dict[str, Any]) -> Endpoint:
    return infinity.ENDPOINTS[0] if "raw_scores" in body else vllm.ENDPOINTS[0]


def _rerank(body: dict[str, Any]) -> Endpoint:
    if "texts" in body and "documents" not in body:
        return RERANK_TEI
    return infinity.ENDPOINTS[1] if any(key in body for key in _INFINITY) else RERANK_VLLM


async def classify(call: Call, body: ClassifyRequest) -> Any:
    return await _as(_classify(body.root), call, body.root)


async def rerank(call: Call, body: RerankRequest) -> Any:
    return await _as(_rerank(body.root), call, body.root)


async def _as(endpoint: Endpoint, call: Call, body: dict[str, Any]) -> Any:
    """The answer in the format of an endpoint, and its failures too."""
    try:
        assert endpoint.body is not None
        return await endpoint.handler(call, validated(endpoint.body, body))
    except Failure as failure:
        return endpoint.failed(call.state, failure)


RERANK_TEI = Endpoint(("/rerank",), tei.rerank, tei.errors, tei.RerankRequest, method="rerank")
RERANK_VLLM = Endpoint(("/v1/rerank",), vllm.rerank, vllm.errors, vllm.RerankRequest, method="rerank")
ENDPOINTS = (
    Endpoint(
        ("/classify",),
        classify,
        vllm.errors,
        ClassifyRequest,
        method="classify",
        summary="Classify (vLLM, Infinity)",
        request=vllm.ClassifyRequest | infinity.ClassifyRequest,
        answer=VllmClasses | InfinityClasses,
        more_errors=(infinity.errors,),
    ),
    Endpoint(
        ("/rerank",),
        rerank,
        tei.errors,
        RerankRequest,
        method="rerank",
        summary="Rank documents (TEI, vLLM, Infinity)",
        request=tei.RerankRequest | vllm.RerankRequest | infinity.RerankRequest,
        answer=list[TeiRank] | VllmRanks | InfinityRanks,
        more_errors=(vllm.errors, infinity.errors),
    ),
)
