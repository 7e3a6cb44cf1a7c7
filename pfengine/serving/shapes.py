"""The shapes of answers, by wire format. They are for the OpenAPI document; handlers build plain objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Label(BaseModel):
    score: float
    label: str


class TeiRank(BaseModel):
    index: int
    score: float
    text: str = ""
    exit_layer: int


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(BaseModel):
    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str
    layers: int
    exit_layers: list[int]
    criterion: str


class Health(BaseModel):
    unix: float


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class VllmClass(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int
    exit_layer: int


class VllmAnswer(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class VllmClasses(VllmAnswer):
    data: list[VllmClass]


class VllmScore(BaseModel):
    index: int
    object: Literal["score"]
    score: float
    exit_layer: int


class VllmScores(VllmAnswer):
    data: list[VllmScore]


class VllmRank(BaseModel):
    index: int
    document: dict[str, Any]
    relevance_score: float
    exit_layer: int


class VllmRanks(VllmAnswer):
    results: list[VllmRank]


class VllmModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class VllmModels(BaseModel):
    object: Literal["list"]
    data: list[VllmModel]


class InfinityAnswer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage


class InfinityClasses(InfinityAnswer):
    object: Literal["classify"]
    data: list[list[Label]]


class InfinityRank(BaseModel):
    relevance_score: float
    index: int
    document: str | None
    exit_layer: int


class InfinityRanks(InfinityAnswer):
    object: Literal["rerank"]
    results: list[InfinityRank]


class InfinityModel(BaseModel):
    id: str
    stats: dict[str, Any]
    object: Literal["model"]
    owned_by: str
    created: int
    backend: str
    capabilities: list[str]


class InfinityModels(BaseModel):
    object: Literal["list"]
    data: list[InfinityModel]


class OutputTensor(BaseModel):
    name: str
    datatype: Literal["BYTES", "FP32", "INT64"]
    shape: list[int]
    data: list[Any] = []
    parameters: dict[str, Any] = {}


class InferAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
