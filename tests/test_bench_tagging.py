"""Saved tokens are saved time: what the bench of taggers counts, and that it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfengine.rows import Row

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench import tagging  # noqa: E402


def row(tokens: int, first: list[int], pieces: list[int]) -> Row:
    ids = np.arange(tokens)
    return Row(0, ids, None, False, first_pieces=np.array(first, np.int32), pieces=np.array(pieces, np.int32))


def test_what_a_speedup_over_pieces_counts() -> None:
    rows = [row(6, [1, 2], [1, 3]), row(3, [1], [1])]
    layers = np.array([[4, 2], [3, 0]])
    # 1 piece through 4 layers, 3 through 2, two of no word through 4; all of the other row through 3
    assert tagging.pieces_speedup(rows, layers, 12) == pytest.approx(12 * 9 / (4 + 6 + 8 + 9))
    assert tagging.pieces_speedup(rows, np.array([[12, 12], [12, 0]]), 12) == 1


def test_the_bench_runs(make_text_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_text_checkpoint(labels=4, head={"type": "tagger"}, criterion="tokee:,3", threshold=0.7)
    texts = ["a charming film", "the movie is bleak and slow , very slow", "it 's good", "great ! great !"] * 10
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"words": text.split()}) + "\n" for text in texts))
    out = tmp_path / "out.json"
    options = ["--rounds", "2", "--most", "36", "--size", "3", "--speedups", "1.5", "--json", str(out)]
    (outcome,) = tagging.main([str(path), str(tmp_path / "rows.jsonl"), *options])
    assert json.loads(out.read_text())[0]["criterion"] == outcome.criterion
    assert outcome.pieces_speedup == pytest.approx(1.5, abs=0.3)
    assert outcome.wall_clock_speedup > 0
