"""out = LayerNorm(word[ids] + position[positions] + type[types]), token by token; some models lack the last or both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two, warps
from .layer_norm import normalise
from .scratch import empty


@triton.jit
def _row_of(table, ids, token, rows, size, column):
    """A row of a table. A number outside the table gives zeros; callers have checked that there is none."""
    source_row = tl.load(ids + token)
    columns = tl.where((source_row >= 0) & (source_row < rows), size, 0)
    return tl.load(table + source_row * size + column, mask=column < columns, other=0.0).to(tl.float32)


@triton.jit
def _embed_kernel(
    ids, positions, types, word, position, token_type, weight, bias, out, count,
    word_rows, position_rows, type_rows, size, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    token = tl.program_id(0)
    if token >= tl.load(count):
        return
    column = tl.arange(0, BLOCK)
    is_column = column < size
    total = _row_of(word, ids, token, word_rows, size, column)
    if position is not None:
        total += _row_of(position, positions, token, position_rows, size, column)
    if token_type is not None:
        total += _row_of(token_type, types, token, type_rows, size, column)
    y = normalise(total, is_column, size, weight, bias, column, eps)
    tl.store(out + token.to(tl.int64) * size + column, y.to(out.dtype.element_ty), mask=is_column)


def embed(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    tables: tuple[Tensor, Tensor | None, Tensor | None],
    weight: Tensor,
    bias: Tensor,
    eps: float,
    count: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The embeddings of the first `count` tokens. Output past `count` is uninitialised.

    ids, positions, types: int64 [T]; tables: word, position, token type, [rows, H], fp32, fp16 or bf16; weight, bias:
    fp32 [H]; count: int32 [1], at most T. Positions or types whose table is None are not read. Returns [T, H] of the
    tables' dtype; or fills `out`. Raises ValueError for anything else.
    """
    word, position, token_type = tables
    size = word.shape[-1]
    for name, x in (("ids", ids), ("positions", positions), ("types", types)):
        check(name, x, torch.int64, ids.shape[0], like=ids)
    for name, table in (("word", word), ("position", position), ("token_type", token_type)):
        if table is not None:
            check(name, table, FLOATS if table is word else word.dtype, -1, size, like=ids)
    check("weight", weight, torch.float32, size, like=ids)
    check("bias", bias, torch.float32, size, like=ids)
    check_count("count", count, ids)
    if out is not None:
        check("out", out, FLOATS, ids.shape[0], size, like=ids)
    else:
        out = empty(ids.shape[0], size, dtype=word.dtype, device=ids.device)
    block = power_of_two(size, 16)
    launch(
        _embed_kernel,
        (ids.shape[0],),
        {
            "ids": ids, "positions": positions, "types": types, "word": word, "position": position,
            "token_type": token_type, "weight": weight, "bias": bias, "out": out, "count": count,
            "word_rows": word.shape[0], "position_rows": 0 if position is None else position.shape[0],
            "type_rows": 0 if token_type is None else token_type.shape[0], "size": size, "eps": eps,
        },
        {"BLOCK": block},
        num_warps=warps(block),
    )  # fmt: skip
    return out
