"""Every entry point of pfengine._C with arguments that are right, for tests that make one of them wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pfengine import extension
from pfengine.ops import Block, Distances, Norm, cpu
from pfengine.ops.packing import pack_linear

C = extension._C
HIDDEN, HEADS, INNER, LABELS, LAYERS = 32, 2, 40, 3, 2
Arguments = dict[str, Any]
kept: list[torch.Tensor] = []  # what lies at the addresses


def at(tensor: torch.Tensor) -> int:
    kept.append(tensor)
    return tensor.data_ptr()


def room(*shape: int, dtype: torch.dtype = torch.float32) -> int:
    return at(torch.zeros(shape, dtype=dtype))


def linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, row_major: bool = False) -> Any:
    packed = pack_linear(torch.rand(outputs, inputs), torch.rand(outputs), dtype, row_major=row_major)
    kept.extend(packed.tensors)
    return packed.native


def block(dtype: torch.dtype = torch.float32) -> Any:
    sizes = {"qkv": (HIDDEN, 3 * HIDDEN), "attention_output": (HIDDEN, HIDDEN), "intermediate": (HIDDEN, INNER),
             "output": (INNER, HIDDEN)}  # fmt: skip
    parts = {name: (torch.rand(out, size), torch.rand(out)) for name, (size, out) in sizes.items()}
    norm = Norm(torch.ones(HIDDEN), torch.zeros(HIDDEN), 1e-5)
    weights = Block(
        **parts, attention_norm=norm, output_norm=norm, num_heads=HEADS, scale=0.3, activation="gelu",
        distances=Distances(
            torch.rand(HEADS, 9), torch.arange(9), torch.rand(HEADS, 9, HIDDEN // HEADS),
            torch.rand(HEADS, 9, HIDDEN // HEADS),
        ),
    )  # fmt: skip
    prepared = cpu.prepare_block(weights, dtype)
    kept.extend(prepared.tensors)
    return prepared.native


def merge(**changes: Any) -> Any:
    good = {"kind": C.Gate.authors, "labels": LABELS, "width": LABELS, "gate": linear(LABELS, LABELS, row_major=True)}
    return C.Merge(**(good | {"gate_states": 2} | changes))


def attentive_arguments() -> Arguments:
    return {
        "precision": C.Precision.fp32, "heads": HEADS, "head_size": 4, "scale": 0.5, "narrow": linear(HIDDEN, 9),
        "qkv": linear(9, 3 * 4 * HEADS), "output": linear(4 * HEADS, 9), "pooling": C.TokenPooling.max,
    }  # fmt: skip


def exit_arguments() -> Arguments:
    return {
        "attentive": None, "queries": None, "reads": C.Reads.first,
        "precision": C.Precision.fp32, "learner_precision": C.Precision.fp32,
        "pooler": linear(HIDDEN, HIDDEN), "pooler_activation": C.Activation.relu,
        "pooler_norm": C.Norm(**norm_arguments()),
        "learned": linear(HIDDEN, 1, row_major=True),
        "past": linear(HIDDEN, 2 * LABELS, row_major=True), "folded": None, "learners": linear(HIDDEN, 64),
        "activation": C.Activation.tanh, "projection": linear(64, LABELS, row_major=True), "merge": merge(),
    }  # fmt: skip


def norm_arguments() -> Arguments:
    return {"weight": room(HIDDEN), "bias": room(HIDDEN), "eps": 1e-5}


def embedding_arguments() -> Arguments:
    tables = {"word": room(9, HIDDEN), "position": room(8, HIDDEN), "token_type": room(2, HIDDEN)}
    sizes = {"words": 9, "positions": 8, "token_types": 2, "size": HIDDEN}
    return tables | sizes | {"bf16": False, "norm": C.Norm(**norm_arguments())}


def model_arguments() -> Arguments:
    layer = C.Layer(blocks=[block()], exit=C.Exit(**exit_arguments()), adds_from=0)
    embedding = C.Embedding(**embedding_arguments())
    return {"embedding": embedding, "projection": None, "precision": C.Precision.fp32, "layers": [layer] * LAYERS,
            "renormalises": False, "final_norm": C.Norm(**norm_arguments())}  # fmt: skip


def block_arguments() -> Arguments:
    return {
        "precision": C.Precision.int8, "activation": C.Activation.relu, "heads": HEADS, "head_size": HIDDEN // HEADS,
        "scale": 0.3, "qkv": linear(HIDDEN, 3 * HIDDEN, torch.int8),
        "attention_output": linear(HIDDEN, HIDDEN, torch.int8), "intermediate": linear(HIDDEN, INNER, torch.int8),
        "output": linear(INNER, HIDDEN, torch.int8), "attention_norm": C.Norm(**norm_arguments()),
        "output_norm": C.Norm(**norm_arguments()), "distances": C.Distances(**distances_arguments()),
        "norm_first": False, "gated": False, "rotary": C.Rotary(**rotary_arguments()), "window": None,
    }  # fmt: skip


def distances_arguments(**changes: Any) -> Arguments:
    words, stride = HIDDEN // HEADS // 2, 2 * 5 - 1 + C.DISTANCE_ZEROS
    good = {"heads": HEADS, "words": words, "most": 5, "bias": room(HEADS, stride),
            "keys": room(HEADS, words, stride), "queries": room(HEADS, words, stride)}  # fmt: skip
    return good | changes


def rotary_arguments() -> Arguments:
    return {"half": HIDDEN // HEADS // 2, "most": 5, "angles": room(5, HIDDEN // HEADS)}


def batch() -> Arguments:
    return {"tokens": 5, "cu_seqlens": at(torch.tensor([0, 2, 5]).int()), "rows": 2}


def flight_arguments() -> Arguments:
    return {
        "kernels": cpu.kernels(), "model": C.Model(**model_arguments()), "ids": np.arange(5), "positions": np.arange(5),
        "types": np.zeros(5, np.int64), "cu_seqlens": np.array([0, 2, 5], np.int32), "pieces": None,
        "slots": np.array([1, 0]), "logits": np.zeros((2, LABELS), np.float32), "layers": np.zeros(2, np.int64),
        "threads": 2,
    }  # fmt: skip


def clause_arguments() -> Arguments:
    numbers = {name: np.ones((LAYERS, 1), np.float32) for name in ("threshold", "times", "temperature")}
    return {"signal": "entropy", "comparison": "<", "memory": "side", "size": 3} | numbers


def rule(**changes: Any) -> Any:
    good = {"tested": bytes(LAYERS), "clauses": [C.Clause(**clause_arguments())], "tokens": None}
    return C.ExitRule(**(good | changes))


def with_kernels(**arguments: Any) -> Arguments:
    return {"kernels": cpu.kernels(), **arguments}


def queries_of(weights: Any, *tokens: int, bounds: tuple[int, ...] = (0, 1, 3)) -> Arguments:
    """A list of queries of that batch, by keys and values that were kept, to rows 0, 2 and 3 of five."""
    return with_kernels(
        block=weights, x=room(5, HIDDEN), **batch(), kind=C.Queries.list, queries=len(tokens),
        query_tokens=at(torch.tensor(tokens).int()), query_bounds=at(torch.tensor(bounds).int()),
        targets=at(torch.tensor([0, 2, 3]).int()), kept=room(5, C.kept_stride(weights) // 4), out=room(5, HIDDEN),
        out_rows=5, sums=room(5, HIDDEN), threads=2,
    )  # fmt: skip


BORDERS = torch.tensor([0, 2, 5]).int()
STAY = torch.tensor([True, False])
GOOD: dict[str, Callable[[], Arguments]] = {
    "Linear": lambda: {"weights": room(64, 64), "scale": room(32), "weight_sum": room(32), "bias": room(32),
                       "inputs": 32, "outputs": 32, "row_major": False},
    "Norm": norm_arguments,
    "Embedding": embedding_arguments,
    "Distances": distances_arguments,
    "Rotary": rotary_arguments,
    "Block": block_arguments,
    "Merge": lambda: {"kind": C.Gate.authors, "labels": LABELS, "width": 1, "gate": linear(1, 1), "gate_states": 2.0},
    "Exit": exit_arguments,
    "Attentive": attentive_arguments,
    "Layer": lambda: {"blocks": [block()], "exit": C.Exit(**exit_arguments()), "adds_from": -1},
    "Model": model_arguments,
    "columns_of": lambda: with_kernels(linear=linear(8, 128), precision=C.Precision.fp32, first=64),
    "kept_stride": lambda: {"block": block()},
    "count_kept": lambda: {"cu_seqlens": at(BORDERS), "stay": at(STAY), "rows": 2, "tokens": 5},
    "compact": lambda: {
        "tokens": room(5, 8), "width_bytes": 32, "cu_seqlens": at(BORDERS), "row_ids": room(2, dtype=torch.int64),
        "stay": at(STAY), "rows": 2, "new_tokens": room(5, 8), "new_cu_seqlens": room(3),
        "new_row_ids": room(2, dtype=torch.int64), "threads": 2},
    "keys_values": lambda: with_kernels(block=(weights := block()), x=room(5, HIDDEN), **batch(),
                                        kept=room(5, C.kept_stride(weights) // 4), threads=2),
    "run_block": lambda: queries_of(block(torch.int8), 1, 2, 4),
    "run_norm": lambda: with_kernels(norm=C.Norm(**norm_arguments()), x=room(5, HIDDEN), rows=5, size=HIDDEN,
                                     out=room(5, HIDDEN), threads=2),
    "run_linear": lambda: with_kernels(precision=C.Precision.fp32, linear=linear(8, 96), first_column=32, columns=64,
                                       activation=C.Activation.gelu, x=room(3, 8), stride=8, rows=3, add=room(3, 64),
                                       add_stride=64, out=room(3, 64), threads=2),
    "run_exit": lambda: with_kernels(exit=C.Exit(**exit_arguments()), x=room(2, HIDDEN), add=room(2, 2 * LABELS),
                                     rows=2, past=room(2, 2 * LABELS), logits=room(2, LABELS), learned=room(2),
                                     threads=2),
    "run_attentive": lambda: with_kernels(attentive=C.Attentive(**attentive_arguments()), x=room(5, HIDDEN), **batch(),
                                          out=room(2, 9), threads=2),
    "QueryMean": lambda: {"queries": room(HIDDEN, 16), "count": 4, "size": HIDDEN},
    "run_query_mean": lambda: with_kernels(queries=C.QueryMean(queries=room(HIDDEN, 16), count=4, size=HIDDEN),
                                           x=room(5, HIDDEN), **batch(), out=room(2, HIDDEN), threads=2),
    "run_mean": lambda: {"x": room(5, HIDDEN), "tokens": 5, "cu_seqlens": at(BORDERS), "rows": 2, "size": HIDDEN,
                         "out": room(2, HIDDEN)},
    "Clause": clause_arguments,
    "TokenRule": lambda: {"unit": "token", "pool": "max", "window": 3, "freezes": True},
    "ExitRule": lambda: {"tested": bytes(LAYERS), "clauses": [C.Clause(**clause_arguments())] * 2, "tokens": None},
    "Flight": flight_arguments,
    "run_signal": lambda: {"signal": "energy", "logits": room(2, LABELS), "rows": 2, "labels": LABELS,
                           "temperature": 1.0, "out": room(2)},
    "run_decide": lambda: {
        "rule": rule(tokens=C.TokenRule("token", "max", 1, False)), "layer": 1, "logits": room(5, LABELS),
        "learned": room(5), "count": 5, "labels": LABELS, "cu_seqlens": at(BORDERS), "rows": 2,
        "slots": room(5, dtype=torch.int64), "state": room(5, 3), "leave": room(5, dtype=torch.bool)},
    "run_merge": lambda: with_kernels(merge=merge(), past=room(2, LABELS), gates=room(2, LABELS),
                                      future=room(2, LABELS), rows=2, out=room(2, LABELS)),
    "run_embed": lambda: with_kernels(embedding=C.Embedding(**embedding_arguments()),
                                      ids=room(5, dtype=torch.int64), positions=room(5, dtype=torch.int64),
                                      types=room(5, dtype=torch.int64), tokens=5, out=room(5, HIDDEN), threads=2),
}  # fmt: skip
