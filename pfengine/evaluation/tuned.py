"""Which setting of a tuned model is the fastest that keeps a promise against the model it was made from; and how fast.

A setting is a precision, the exits that are tested in it, a threshold, and whether rows of which no exit is sure fall
back to the original. Exits are chosen by measured time on texts of the training: the promise's texts have no say in it.
Thresholds of one setting are tested in a fixed order (`exits.guarantee`); the settings share the risk equally
(Bonferroni), so the promise of whichever is chosen holds with the confidence that was asked for.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import extension
from ..api import Engine, load
from ..checkpoint import Checkpoint
from ..exits import DataCriterion
from ..exits.base import MULTI
from ..exits.calibration import alike
from ..exits.guarantee import Guarantee, NotShown, guarantee
from ..exits.placement import place
from ..exits.text import parse_form
from ..manifest import Manifest
from ..ops import cpu
from .costs import measure_costs
from .peers import openvino_peer, transformers_peer

SAMPLE, SINGLE_ROWS, ROUNDS, BATCH = 256, 40, 3, 32  # rows that are timed; those timed one a call; repeats
CHOOSING = 2048  # texts that tested exits are chosen on


@dataclass(frozen=True)
class Candidate:
    """One setting that was tried."""

    precision: str
    falls_back: bool
    exit_layers: tuple[int, ...]  # of the tuned model, that are tested
    full_depth_agreement: float  # of the tuned model alone, no exits taken, with the original in fp32
    promised: Guarantee | None  # its layer speed-up counts the original's layers where rows fall back to it
    reason: str | None  # why there is no promise
    predicted_rows_per_second: float  # from the original's speed in this precision; 0 without a promise

    def tested(self, manifest: Manifest) -> Manifest:
        """The tuned model's manifest, with the exits that are tested in this setting."""
        form = parse_form(manifest.criterion or "never")
        assert isinstance(form, DataCriterion)
        form = form.for_exits(manifest.exit_layers, self.exit_layers)
        return replace(manifest, exit_layers=self.exit_layers, criterion=form.form)

    def record(self) -> dict[str, Any]:
        """What pfengine.json says of the promise."""
        assert self.promised is not None
        return asdict(self.promised) | {"precision": self.precision, "judge": "the original in fp32"}


@dataclass(frozen=True)
class Tuned:
    """What `pfengine attach --tune` made, and how it compares with the original."""

    checkpoint: str
    rows: int  # held-out texts: promise and agreement are of these
    precision: str
    falls_back: bool
    guarantee: Guarantee
    candidates: tuple[Candidate, ...]
    contestants: tuple[
        dict[str, Any], ...
    ]  # name, rows_per_second, p50_ms of one row, agreement, layer_speedup[, accuracy]
    skipped: dict[str, str]  # contestants that are missing, and why

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def precisions() -> tuple[str, ...]:
    """Those that are tried here: fp32, and what this processor is faster in."""
    return (*(cpu.fast_precisions() if extension.has_cpu() else ()), "fp32")


def risk_of_each(confidence: float, fallback: bool) -> float:
    """The confidence that each setting must reach."""
    return 1 - (1 - confidence) / (len(precisions()) * (1 + fallback))


def search(
    tuned: Checkpoint,
    original: Checkpoint,
    texts: Sequence[Any],
    answers: np.ndarray,
    seen: Sequence[Any],
    *,
    agreement: float,
    confidence: float,
    fallback: bool,
    max_length: int | None,
    tolerance: float | None = None,
) -> tuple[Candidate, ...]:
    """Every setting with its fastest threshold that keeps the promise; NotShown where none does.

    answers: the original's logits in fp32, float32 [rows, labels]. Both models must have the same labels. seen: texts
    of the training. tolerance: of regression, how far a score may be from the original's.
    """
    form = parse_form(tuned.manifest.criterion or "never")
    assert isinstance(form, DataCriterion)
    label_sets = original.backbone.problem_type == MULTI
    found: list[Candidate] = []
    for precision in precisions():
        engine = load(tuned, precision=precision, criterion="never", max_length=max_length)
        full = load(original, precision=precision, criterion="never", max_length=max_length)
        layers = worth_testing(engine, form, seen[:CHOOSING], agreement, tolerance, label_sets)
        own = form.for_exits(engine.exit_layers, layers)
        engine.model = replace(engine.model, exit_layers=layers)
        scores, sample = engine.layer_scores(texts), texts[:SAMPLE]
        rate = len(sample) / statistics.median(seconds_of(partial(full.predict, sample, batch_size=BATCH)))
        deep = float(alike(scores.logits[-1], answers, tolerance, label_sets).mean())
        for falls_back in (False, True) if fallback else (False,):
            logits, learned, ends = scores.logits, scores.learned, layers
            if falls_back:
                last = answers if precision == "fp32" else full.predict(texts).logits
                logits, ends = np.concatenate([logits, last[None]]), (*layers, layers[-1] + full.num_layers)
                if learned is not None:
                    learned = np.concatenate([learned, np.full_like(learned[:1], np.nan)])
            try:
                promised = guarantee(
                    own, logits, None, ends, limit=1 - agreement, confidence=risk_of_each(confidence, fallback),
                    learned=learned, tolerance=tolerance, label_sets=label_sets, reference=answers,
                )  # fmt: skip
            except NotShown as error:
                found.append(Candidate(precision, falls_back, layers, deep, None, str(error), 0.0))
                continue
            speedup = promised.layer_speedup * full.num_layers / ends[-1]
            promised = replace(promised, layer_speedup=speedup, confidence=confidence)
            found.append(Candidate(precision, falls_back, layers, deep, promised, None, rate * speedup))
    if not any(each.promised for each in found):
        deep = max(each.full_depth_agreement for each in found)
        raise NotShown(
            f"no setting keeps the promise: at full depth the tuned model agrees with the original on {deep:.1%} of "
            f"{len(texts)} held-out texts; give more texts, train for more epochs, or ask for less than {agreement:g}"
        )
    return tuple(found)


def worth_testing(
    engine: Engine,
    form: DataCriterion,
    texts: Sequence[Any],
    agreement: float,
    tolerance: float | None,
    label_sets: bool,
) -> tuple[int, ...]:
    """The exits that make these texts fastest at an agreement with full depth: a tested exit costs time, too.

    All of them where no threshold keeps that agreement.
    """
    if not texts or len(engine.exit_layers) == 1:
        return engine.exit_layers
    scores, costs = engine.layer_scores(texts), measure_costs(engine, texts[:SAMPLE], form)
    found = place(form, scores.logits, engine.exit_layers, costs, agreement, scores.learned, tolerance, label_sets)
    return engine.exit_layers if found is None else found.exit_layers


def report(
    output: Path,
    original: Checkpoint,
    judge: Engine,
    texts: Sequence[Any],
    answers: np.ndarray,
    candidates: tuple[Candidate, ...],
    best: Candidate,
    truth: np.ndarray | None = None,
    tolerance: float | None = None,
) -> Tuned:
    """Time what was written beside the original, in one run, and count agreement on the held-out texts.

    truth: label ids of the texts, int64 [rows], where they are known; then accuracy is counted, too. tolerance: as in
    `search`.
    """
    assert best.promised is not None
    label_sets = original.backbone.problem_type == MULTI
    engine = load(output, max_length=judge.max_length)
    calls: dict[str, Callable[[Sequence[Any]], Any]] = {}
    skipped: dict[str, str] = {}
    peers: dict[str, Callable[[], Any]] = {
        "original, transformers fp32": partial(transformers_peer, original, judge.tokenizer, BATCH),
        "original, OpenVINO int8": partial(openvino_peer, original, judge.tokenizer, BATCH, texts),
    }
    for peer, make in peers.items():
        try:
            calls[peer] = make()
        except ImportError as error:
            skipped[peer] = str(error)
        except Exception as error:  # a converter may fail in any way, and the model is written by now
            skipped[peer] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    calls["original, pfengine fp32"] = lambda rows: judge.predict(rows, batch_size=BATCH).logits
    name = f"tuned, pfengine {engine.precision}"
    calls[name] = lambda rows: engine.predict(rows, batch_size=BATCH).logits
    timed, single = texts[:SAMPLE], texts[:SINGLE_ROWS]
    seconds: dict[str, list[float]] = {each: [] for each in calls}
    for _ in range(ROUNDS):
        for each, call in calls.items():
            seconds[each] += seconds_of(partial(call, timed), rounds=1)
    lone = {each: [t for row in single for t in seconds_of(partial(call, [row]), 1)] for each, call in calls.items()}
    out = engine.predict(texts)
    contestants = []
    for each, call in calls.items():
        found = out.logits if each == name else call(texts)
        contestants.append(
            {
                "name": each,
                "rows_per_second": len(timed) / statistics.median(seconds[each]),
                "p50_ms": 1000 * statistics.median(lone[each]),
                "agreement": float(alike(found, answers, tolerance, label_sets).mean()),
                "layer_speedup": float(out.layer_speedup) if each == name else 1.0,
            }
            | ({} if truth is None else {"accuracy": float((found.argmax(1) == truth).mean())})
        )
    return Tuned(
        os.fspath(output), len(texts), engine.precision, best.falls_back, best.promised, candidates,
        tuple(contestants), skipped,
    )  # fmt: skip


def seconds_of(call: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """How long each of several calls takes; before several there is one that does not count."""
    if rounds > 1:
        call()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found
