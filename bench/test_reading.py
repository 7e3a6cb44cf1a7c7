"""Microseconds per row to read ids: a window's rows together, beside the same rows one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from pfengine import id_rows
from pfengine.rows import Row, parse

from .interleave import interleave

ROWS, VOCAB = 256, 30_522  # `windows` reads so many at a time


def one_by_one(rows: list[tuple[int, Any]]) -> list[Row]:
    return [parse(row_id, row) for row_id, row in rows]  # type: ignore[misc]


def check(answers: dict[str, list[Row]]) -> None:
    together, alone = answers.values()
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize("keys", [("input_ids",), ("input_ids", "token_type_ids", "attention_mask")], ids=len)
@pytest.mark.parametrize("tokens", [25, 128])
def test_reading(benchmark: Any, tokens: int, keys: tuple[str, ...]) -> None:
    numbers = np.random.default_rng(0).integers(1, VOCAB, (ROWS, tokens)).tolist()
    rows = [(i, {key: ids if key == "input_ids" else [1] * tokens for key in keys}) for i, ids in enumerate(numbers)]
    together = partial(id_rows.read, rows, 512, VOCAB, 2)
    rounds = interleave({"together": together, "one by one": partial(one_by_one, rows)}, check)
    benchmark.group = f"reading ids, {tokens} tokens, {len(keys)} lists a row"
    benchmark.extra_info |= {f"us_per_row, {name}": 1e6 * rounds.median(name) / ROWS for name in rounds.seconds}
    benchmark.extra_info["times_faster"] = rounds.speedup("together", "one by one")
    benchmark.pedantic(together, rounds=1)
    print(benchmark.group, benchmark.extra_info)
