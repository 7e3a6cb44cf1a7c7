"""Calibrating a cross-encoder for the best k documents of a query, on held-out queries without labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, saving
from ..api import Engine, load
from ..cascade_reader import CascadeCheckpoint, open_checkpoint
from ..cascade_saving import refill
from ..errors import ConfigError, InputError
from ..exits.base import number, share
from ..exits.guarantee import TooFewRows, binomial_tail, rows_needed
from ..exits.top_k import TopK
from ..exits.top_k_search import Queries, RankingGuarantee, promise, proportions
from ..manifest import Manifest
from ..messages import warn
from ..options import whole
from .calibrated import target_of
from .precisions import checked_here

PARTS = 10  # of the queries, each with a notice


@dataclass(frozen=True)
class RankingCalibration:
    """What `calibrate_ranking` found and wrote.

    precisions: of each, on the queries of the guarantee: the share whose best k are those of its own full depth
    ("same_set"), the p-value of the promise in that precision, and the share whose best k at full depth are those of
    fp32 ("full_depth_same_set").
    """

    checkpoint: str
    data: str
    queries: int
    left_out: int  # queries with k documents or fewer
    rule: TopK
    guarantee: RankingGuarantee
    exit_layers: tuple[int, ...]
    exits: tuple[float, ...]  # share of documents that leave after each exit, on the queries of the guarantee
    precisions: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rule": self.rule.record()}


def calibrate_ranking(
    path: str | os.PathLike[str],
    source: str | Path,
    *,
    top_k: int = 10,
    agreement: float = 0.95,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    out: str | os.PathLike[str] | None = None,
    data_format: str = "auto",
    text_column: str | None = None,
    pair_column: str | None = None,
    notify: Callable[[str], None] = lambda stage: None,
) -> RankingCalibration:
    """Find the margins by which `Engine.rank` lets documents leave, and write them into the checkpoint.

    The promise: in at least `agreement` of all queries the best `top_k` documents are those of full depth, with
    `confidence`. Documents whose score is within `tolerance` of rank k's may stand for each other; it is in units of
    the logit. One half of the queries gives the margins' proportions, the other half the promise.

    source: a file of pairs, a query and a document, or a directory with a `dev` split; rows with the same query are its
    candidates. Labels are not read. Queries should come from where those of users do, with candidates of the same first
    stage, as many of them. data_format, text_column (the query's), pair_column (the document's): as in `data.stream`.
    out: write there, not to `path`. notify: is told what is being done, a line a stage.

    Raises ConfigError for options and data that do not fit, CheckpointError for the checkpoint, TooFewRows where the
    promise cannot be proved on so few queries, NotShown where no margins keep it.
    """
    k = whole("top_k", top_k)
    limit, sure = 1 - share("agreement", agreement), share("confidence", confidence)
    if (tolerance := number("tolerance", tolerance)) < 0:
        raise ConfigError(f"tolerance is {tolerance!r}; it must be at least 0")
    engine = load(path, precision="fp32", criterion="never")
    directory = engine.checkpoint.path
    _check_model(engine, path)
    target = target_of(engine, path, out)
    saving.check_writable(target)
    name = data.display_name(Path(source))
    file = data.locate(source, "dev")
    examples = data.read(file, text=text_column, pair=pair_column, kind=data_format, labelled=False)
    groups = _candidates([example.row for example in examples], name)
    rows = [group for group in groups if len(group) > k]
    if len(rows) < len(groups):
        warn(
            f"{len(groups) - len(rows)} of {len(groups)} queries in {name} have at most {k} documents, the best of "
            "which are known beforehand; they are left out"
        )
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[i] for i in order]
    cut = len(rows) // 2
    if (needed := rows_needed(limit, sure)) > len(rows) - cut:
        raise TooFewRows(
            f"{name} has {len(rows)} queries with more than {k} documents, one half of which cannot show that at most "
            f"{limit:.4g} of queries are at fault with confidence {sure:g}: at least {2 * needed} are needed, more "
            "where there are faults"
        )
    every = Queries(_scores(engine, rows, notify), engine.exit_layers)
    notify("margins")
    first, fresh = every.of(np.arange(cut)), every.of(np.arange(cut, len(rows)))
    margins = proportions(first, k, tolerance, limit)
    rule, promised = promise(fresh, k, margins, tolerance=tolerance, limit=limit, confidence=sure)
    precisions = _precisions(engine, rows[cut:], fresh, rule, promised, notify)
    manifest = engine.checkpoint.manifest
    assert isinstance(manifest, Manifest)
    field = rule.record() | {"guarantee": asdict(promised), "precisions": precisions}
    manifest = replace(manifest, ranking=field)
    if target == directory:
        saving.write_manifest(directory, manifest)
    else:
        with saving.replacing(target) as stage:
            refill(stage, open_checkpoint(directory).checked(), manifest)
    return RankingCalibration(
        checkpoint=os.fspath(target),
        data=name,
        queries=len(rows),
        left_out=len(groups) - len(rows),
        rule=rule,
        guarantee=promised,
        exit_layers=engine.exit_layers,
        exits=fresh.leaving(rule),
        precisions=precisions,
    )


def _check_model(engine: Engine, path: Any) -> None:
    """Raise ConfigError where the model does not rank, or has no exits."""
    if isinstance(engine.checkpoint, CascadeCheckpoint):
        raise ConfigError(f"{path} is a cascade; calibrate one of its models for ranking")
    if engine.model.head.tags or len(engine.labels) != 1:
        what = "tags words" if engine.model.head.tags else f"has {len(engine.labels)} labels"
        raise ConfigError(f"{path} {what} and does not rank documents, which takes a model with one label")
    if len(engine.exit_layers) < 2:
        raise ConfigError(f"{path} has no exit before its last layer; give it some with `pfengine attach`")


def _candidates(rows: list[Any], name: str) -> list[list[tuple[str, str]]]:
    """Pairs by their query, in order of appearance."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if not isinstance(row, tuple):
            raise ConfigError(f"{name} has one text per row; give the columns of query and document")
        found.setdefault(row[0], []).append(row)
    return list(found.values())


def _scores(engine: Engine, rows: list[list[tuple[str, str]]], notify: Callable[[str], None]) -> np.ndarray:
    """float32 [exits, queries, documents], -inf in places without a document."""
    most = max(map(len, rows))
    found = np.full((len(engine.exit_layers), len(rows), most), -np.inf, np.float32)
    size = -(-len(rows) // PARTS)
    for start in range(0, len(rows), size):
        notify(f"scores of query {start + 1} of {len(rows)} at {len(engine.exit_layers)} exits, {engine.precision}")
        part = rows[start : start + size]
        logits = engine.layer_logits([row for group in part for row in group])[..., 0]
        at = 0
        for i, group in enumerate(part):
            found[:, start + i, : len(group)] = logits[:, at : at + len(group)]
            at += len(group)
    return found


def _precisions(
    engine: Engine,
    rows: list[list[tuple[str, str]]],
    exact: Queries,
    rule: TopK,
    promised: RankingGuarantee,
    notify: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """How each faster precision that runs here ranks the queries of the promise."""
    found = {}
    for precision in checked_here():
        other = load(engine.checkpoint.path, precision=precision, criterion="never")
        try:
            queries = Queries(_scores(other, rows, notify), exact.exit_layers)
        except InputError:  # a row overflows in this precision: there is nothing to compare
            continue
        _, faults = queries.judged(rule, promised.tolerance)
        found[precision] = {
            "same_set": float(1 - faults.mean()),
            "p_value": binomial_tail(int(faults.sum()), len(rows), promised.limit),
            "full_depth_same_set": float(exact.same_full_depth(queries, rule.k, promised.tolerance).mean()),
        }
    return found
