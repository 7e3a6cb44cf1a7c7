"""Ranking with margins beside full depth, and beside models of fewer layers: time, and whether the best k are the same.

    python bench/ranking.py reranker/ test.tsv --beside half/ --precision int8

Queries are those of `bench/candidates.py`. Every query is ranked by each contestant in turn, and figures are medians of
the rounds. Contestants: the checkpoint by its margins, at full depth, at full depth in fp32, and each model `--beside`
at full depth. The same set is that of the checkpoint at full depth in its own precision, up to the tolerance of its
margins, and for models beside it the share of its best k that they find too.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import pfengine
from pfengine import data
from pfengine.evaluation import describe_machine

Ranked = list[dict[str, Any]]


def main(
    checkpoint: str,
    pairs: Path,
    beside: Annotated[list[str] | None, typer.Option(help="Another model, at full depth; may be repeated.")] = None,
    precision: str = "int8",
    queries: int = 100,
    rounds: int = 5,
    out: Annotated[Path | None, typer.Option(help="Also write JSON there.")] = None,
) -> None:
    asked = list(itertools.islice(groups(pairs).items(), queries))
    engine = pfengine.load(checkpoint, precision=precision)
    margins = engine.checkpoint.manifest.ranking  # type: ignore[union-attr]
    if margins is None:
        raise typer.BadParameter(f"{checkpoint} has no margins; pfengine calibrate --rank finds them")
    k, tolerance = margins["top_k"], margins["guarantee"]["tolerance"]
    contestants: dict[str, Callable[[str, list[str]], Ranked]] = {
        "margins": lambda query, documents: engine.rank(query, documents, top_k=k),
        "full depth": lambda query, documents: engine.rank(query, documents, criterion="never"),
    }
    for name in beside or ():
        other = pfengine.load(name, precision=precision, criterion="never")
        contestants[f"{Path(name).name}, {other.num_layers} layers"] = other.rank
    answers: dict[str, list[Ranked]] = {name: [] for name in contestants}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round in range(rounds + 1):  # the first warms up
        spent = dict.fromkeys(contestants, 0.0)
        for query, documents in asked:
            for name, rank in contestants.items():
                start = time.perf_counter()
                ranked = rank(query, documents)
                spent[name] += time.perf_counter() - start
                if round == 0:
                    answers[name].append(ranked)
        for name in contestants if round else ():
            seconds[name].append(spent[name] / len(asked))
        print(f"round {round} of {rounds}", flush=True)
    report: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name, "precision": precision, "queries": len(asked), "top_k": k,
        "documents": float(np.mean([len(documents) for _, documents in asked])), "tolerance": tolerance,
        "machine": describe_machine(), "contestants": {},
    }  # fmt: skip
    for name, times in seconds.items():
        same = [
            same_set(full, mine, k, tolerance) for full, mine in zip(answers["full depth"], answers[name], strict=True)
        ]
        shared = [overlap(full, mine, k) for full, mine in zip(answers["full depth"], answers[name], strict=True)]
        found = {
            "ms_per_query": 1000 * statistics.median(times),
            "speedup": statistics.median(a / b for a, b in zip(seconds["full depth"], times, strict=True)),
            "same_set": float(np.mean(same)),
            "shared": float(np.mean(shared)),
        }
        report["contestants"][name] = found
        print(
            f"{name}: {found['ms_per_query']:.1f} ms a query, {found['speedup']:.2f} times full depth's speed; the "
            f"same best {k} in {found['same_set']:.1%} of queries, {found['shared']:.1%} of them shared"
        )
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


def groups(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for example in data.read(file, labelled=False):
        if not isinstance(example.row, tuple):
            raise typer.BadParameter(f"{file} has one text per row")
        found.setdefault(example.row[0], []).append(example.row[1])
    return found


def same_set(full: Ranked, mine: Ranked, k: int, tolerance: float) -> bool:
    """Are the best k those of full depth, up to swaps of documents within `tolerance` of rank k's score?"""
    scores = {one["index"]: one["score"] for one in full}
    best, kth = {one["index"] for one in mine[:k]}, full[k - 1]["score"]
    return all(scores[i] >= kth - tolerance for i in best) and all(
        i in best for i, score in scores.items() if score > kth + tolerance
    )


def overlap(full: Ranked, mine: Ranked, k: int) -> float:
    return len({one["index"] for one in full[:k]} & {one["index"] for one in mine[:k]}) / k


if __name__ == "__main__":
    typer.run(main)
