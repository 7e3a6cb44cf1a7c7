"""Are saved tokens saved time? TOKEE beside full depth, at a speed-up counted over word pieces.

    python -m bench.tagging CHECKPOINT ROWS --speedups 2 --precisions fp32,int8

CHECKPOINT is a tagger with exits, ROWS a file of words as `pfengine tag --file` reads it. The threshold is the one
whose speed-up over word pieces is nearest to the one asked for. All pieces of all rows count, those of no word such as
[CLS] and [SEP] too, and each costs the layers that it was a query of. Rows are tokenised beforehand and answered in
batches of 32, sorted by length. Passes at full depth and with exits alternate; ratios are taken pass by pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pfengine
from pfengine import data
from pfengine.errors import ConfigError
from pfengine.evaluation.machine import describe_machine, name_machine
from pfengine.rows import Row

from .interleave import interleave
from .knobs import ROUNDS
from .rows import fixed_batches

BATCH_SIZE = 32


@dataclass(frozen=True)
class Outcome:
    precision: str
    criterion: str
    pieces_speedup: float  # over word pieces
    words_speedup: float  # over words, each counted once
    wall_clock_speedup: float
    seconds_full: float
    seconds: float


def pieces_speedup(rows: Sequence[Row], exit_layers: np.ndarray, layers: int) -> float:
    """Layers times tokens, over the layers that tokens are queries of where words that leave are frozen.

    exit_layers: [rows, words of the longest row], as in `Predictions`. A token of no word is a query for as long as its
    row goes on. Every row has a word.
    """
    done = 0
    for row, own in zip(rows, exit_layers, strict=True):
        assert row.pieces is not None
        others = len(row.ids) - int(row.pieces.sum())
        done += int((row.pieces * own[: len(row.pieces)]).sum()) + others * int(own.max())
    return layers * sum(len(row.ids) for row in rows) / done


def threshold_for(engine: pfengine.Engine, rows: Sequence[Row], speedup: float, size: int) -> float:
    """The threshold of `tokee` whose speed-up over word pieces is nearest to this one, to three digits."""
    given, low, high = ids_of(rows), 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        layers = engine.predict(given, criterion=f"tokee:{middle},{size}").exit_layers
        low, high = (middle, high) if pieces_speedup(rows, layers, engine.num_layers) < speedup else (low, middle)
    return high


def ids_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{"input_ids": row.ids, "first_pieces": row.first_pieces, "pieces": row.pieces} for row in rows]


def measure(engine: pfengine.Engine, rows: Sequence[Row], speedup: float, size: int, rounds: int) -> Outcome:
    criterion = f"tokee:{threshold_for(engine, rows, speedup, size)},{size}"
    given = ids_of(rows)
    batches = [[given[i] for i in batch] for batch in fixed_batches([row.ids.tolist() for row in rows], BATCH_SIZE)]

    def answer(criterion: str) -> list[Any]:
        return [engine.predict(batch, criterion=criterion) for batch in batches]

    found = interleave({"full": lambda: answer("never"), "tokee": lambda: answer(criterion)}, lambda _: None, rounds)
    out, ratio = engine.predict(given, criterion=criterion), found.speedup("tokee", "full")
    assert ratio is not None
    return Outcome(
        engine.precision, criterion, pieces_speedup(rows, out.exit_layers, engine.num_layers), out.layer_speedup, ratio,
        found.median("full"), found.median("tokee"),
    )  # fmt: skip


def read_rows(engine: pfengine.Engine, file: str, most: int) -> list[Row]:
    """The first rows of a file that have words, tokenised."""
    rows = [row for _, row in zip(range(most), data.stream(file), strict=False)]
    found = engine.tokenizer.encode(enumerate(rows))
    return [row for row in found if isinstance(row, Row) and row.word_count and row.pieces is not None]


def main(arguments: Sequence[str] | None = None) -> list[Outcome]:
    parser = argparse.ArgumentParser(prog="python -m bench.tagging", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("rows")
    parser.add_argument("--speedups", default="2")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--size", type=int, default=5, help="of TOKEE's window, in words")
    parser.add_argument("--most", type=int, default=320, help="rows")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="file to write")
    settings = parser.parse_args(arguments)
    outcomes = []
    for precision in settings.precisions.split(","):
        engine = pfengine.load(settings.checkpoint, precision=precision)
        rows = read_rows(engine, settings.rows, settings.most)
        if not rows:
            raise ConfigError(f"{settings.rows} has no rows with words for {settings.checkpoint}")
        for speedup in map(float, settings.speedups.split(",")):
            outcomes.append(measure(engine, rows, speedup, settings.size, settings.rounds))
    tokens = np.mean([len(row.ids) for row in rows])
    print(f"{name_machine(describe_machine())}; {len(rows)} rows of {tokens:.1f} tokens\n")
    print("| precision | criterion | speed-up over word pieces | over words | wall clock | full, ms/row | ms/row |")
    print("|---|---|---|---|---|---|---|")
    for one in outcomes:
        each = (1000 * seconds / len(rows) for seconds in (one.seconds_full, one.seconds))
        print(
            f"| {one.precision} | {one.criterion} | {one.pieces_speedup:.2f} | {one.words_speedup:.2f} | "
            f"{one.wall_clock_speedup:.2f} | " + " | ".join(f"{ms:.2f}" for ms in each) + " |"
        )
    if settings.json is not None:
        settings.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    return outcomes


if __name__ == "__main__":
    try:
        main()
    except pfengine.PFEngineError as error:
        sys.exit(str(error))
