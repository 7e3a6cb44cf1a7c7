"""The CUDA op set: the functions of `cuda_ops`, and the carrier of `cuda_model`. Signatures: `ops.OpSet`."""

from __future__ import annotations

from .cuda_linear import prepare_linear
from .cuda_model import prepare_model
from .cuda_ops import (
    HEAD_ALIGNMENT,
    OWN_THREADS,
    attentive,
    block,
    block_sums,
    embed,
    exit,
    gate_merge,
    guesses,
    keys_values,
    linear,
    mean,
    norm,
    output_norm,
    pooled,
    prepare_attentive,
    prepare_block,
    prepare_embedding,
    prepare_exit,
    prepare_imitation,
    prepare_norm,
    prepare_queries,
    project,
    query_mean,
    signal,
)  # fmt: skip

__all__ = [
    "HEAD_ALIGNMENT", "OWN_THREADS", "attentive", "block", "block_sums", "embed", "exit", "gate_merge", "guesses",
    "keys_values", "linear", "mean", "norm", "output_norm", "pooled", "prepare_attentive", "prepare_block",
    "prepare_embedding", "prepare_exit", "prepare_imitation", "prepare_linear", "prepare_model", "prepare_norm",
    "prepare_queries", "project", "query_mean", "signal",
]  # fmt: skip
