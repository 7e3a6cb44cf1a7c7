"""Measuring quality, layer speed-up, wall-clock speed-up and exit layers of one or several checkpoints."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, tasks
from ..api import BATCH_TOKENS, Engine, Predictions, load
from ..data import Example, TaggedExample
from ..errors import ConfigError
from ..exits import Criterion, DataCriterion, Never
from ..exits.base import MULTI, REGRESSION, SINGLE
from ..exits.calibration import layer_speedup
from ..exits.guarantee import unrelated
from ..exits.text import parse_form
from ..messages import warn
from ..options import whole
from ..tokenization import Row
from .curve import answers_of, curve, oracle
from .judges import judge_exits
from .machine import describe_machine
from .metrics import METRICS, Metrics, leading, measure, standard_error
from .model_answers import answers_of_models
from .report import Report
from .results import Curve, Setting
from .tagged import UNANSWERED, Words, token_speedup

ROWS_TO_DOUBT = 50  # with fewer, right answers can look like chance
Choice = tuple[Engine, str, str, Any]  # engine, checkpoint, name of the setting, criterion


def evaluate(
    path: str | os.PathLike[str],
    source: str | Path,
    *,
    thresholds: Sequence[float] = (),
    speedups: Sequence[float] = (),
    compare: Sequence[str | os.PathLike[str]] = (),
    metrics: Sequence[str] = (),
    curves: bool = True,
    answers: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = BATCH_TOKENS,
    batch_size: int | None = None,
    max_length: int | None = None,
    repeats: int = 3,
    data_format: str = "auto",
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Report:
    """Evaluate a checkpoint on labelled rows.

    source: a file, a directory with a `dev` split, or a GLUE task's name. thresholds, speedups: settings beside full
    depth; neither: every point of the checkpoint's calibration table. compare: other checkpoints, timed in the same run
    at the same speed-ups (one without exits at full depth, `path` too); their layer speed-up counts the layers of
    `path`. metrics: of METRICS, the leading one first; default: the GLUE task's, accuracy, or for regression pearson
    and spearman. For a tagger they are of TAG_METRICS, by default span F1 and accuracy of words; layer speed-ups and
    exits count words, and quality over all thresholds is left out where words that leave are frozen. curves: also what
    the scores of every exit say, which takes one more run of each checkpoint: quality over all thresholds, the oracle
    (not for regression), and each exit judged by itself (docs/judges.md). answers: also each row's answer in every
    setting, and the truth; not of taggers. device, precision: as in `load`. repeats: timed runs of each setting,
    interleaved; medians are reported. data_format, text_column, pair_column, label_column:
    as in `data.stream`. progress: wraps the runs, given how many there are.

    Raises ConfigError for data or settings that do not fit, CheckpointError for a checkpoint.
    """
    repeats = whole("repeats", repeats)
    paths = (path, *compare)
    engines = [load(p, device=device, precision=precision, criterion="never", max_length=max_length) for p in paths]
    main, tags = engines[0], engines[0].model.head.tags
    for engine, other in zip(engines[1:], compare, strict=True):
        if engine.model.head.tags != tags:
            raise ConfigError(f"{path if tags else other} tags words, and {other if tags else path} classifies rows")
        ours, theirs = (each.model.config.problem_type for each in (main, engine))
        if engine.labels != main.labels or ours != theirs:
            mine = f"{path} {', '.join(main.labels)} ({ours})"
            raise ConfigError(f"{other} has the labels {', '.join(engine.labels)} ({theirs}); {mine}")
    file = data.locate(source, "dev")
    columns: dict[str, Any] = {"text": text_column, "pair": pair_column, "label": label_column}
    examples: Sequence[Example | TaggedExample]
    words: Words | None = None
    if tags:
        examples = tagged = data.read_tagged(file, **columns, kind=data_format, labelled=True)
        words = Words.of(tagged, main.labels, data.display_name(Path(source)), main.tokenizer.side)
        assert words.truth is not None
        truth = words.truth
    else:
        examples = plain = data.read(file, **columns, kind=data_format, labelled=True)
        truth = _truth(main, plain, source)
    names: Metrics
    if words is not None:
        names = words.metrics(metrics)
    else:
        names = _metrics(main, source if tasks.find(str(source)) else file.parent, metrics)
    measure(names, truth, truth)  # an error about a missing library comes before anything runs

    alone = len(main.exit_layers) == 1 and compare  # the speed-ups are for those beside it
    choices = _choices(main, os.fspath(path), thresholds, () if alone else speedups)
    for engine, other in zip(engines[1:], compare, strict=True):
        choices += _beside(engine, os.fspath(other), speedups)
    results: list[Predictions | None] = [None] * len(choices)
    seconds: list[list[float]] = [[] for _ in choices]
    runs = [index for _ in range(repeats) for index in range(len(choices))]
    for engine in engines:  # first calls build oneDNN's kernels
        _run(engine, Never(), examples[:64], batch_tokens, batch_size)
    for index in progress(runs, len(runs)) if progress is not None else runs:
        start = time.perf_counter()
        results[index] = _run(choices[index][0], choices[index][3], examples, batch_tokens, batch_size)
        seconds[index].append(time.perf_counter() - start)
    doubtful = (
        not (tags or _regression(main) or _label_sets(main)) and len(truth) >= ROWS_TO_DOUBT and len(set(truth)) > 1
    )
    if doubtful and results[0] is not None:
        doubt = unrelated(results[0].label_ids, truth)
        if doubt is not None:
            warn(f"{source}: {doubt}")
    medians = [float(np.median(times)) for times in seconds]
    settings = [
        _setting(choice, result, examples, truth, names, words, main.num_layers, medians[0] / median, median, answers)
        for choice, result, median in zip(choices, results, medians, strict=True)
        if result is not None
    ]
    texts = [example.row for example in examples]
    tokens = sum(len(row.ids) for row in main.tokenizer.encode(enumerate(texts)) if isinstance(row, Row))
    return Report(
        checkpoint=os.fspath(path),
        data=f"{file.parent.name}/{file.name}" if file.parent.name else data.display_name(file),
        rows=len(examples),
        unit="word" if tags else "row",
        mean_tokens=tokens / len(examples),
        precision=" and ".join(dict.fromkeys(engine.precision for engine in engines)),
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        repeats=repeats,
        machine=describe_machine(main.device),
        settings=settings,
        truth=truth.tolist() if answers and words is None else None,
        curves=[_curve(e, os.fspath(p), texts, truth, names, words) for e, p in zip(engines, paths, strict=True)]
        if curves
        else [],
    )


FITTING = {  # metrics of each problem type, the leading one first
    SINGLE: ("accuracy", "f1"),
    REGRESSION: ("pearson", "spearman"),
    MULTI: ("micro_f1", "macro_f1", "subset_accuracy"),
}


def _regression(engine: Engine) -> bool:
    return engine.model.config.problem_type == "regression"


def _label_sets(engine: Engine) -> bool:
    return engine.model.config.problem_type == MULTI


def _truth(engine: Engine, examples: Sequence[Example], source: str | Path) -> np.ndarray:
    """Label ids, or numbers for regression, of labelled rows; bool [rows, labels] where each is given or not."""
    file = data.display_name(Path(source))
    if _label_sets(engine):
        return data.label_sets(examples, engine.labels, file)
    if not _regression(engine):
        return np.array(data.label_ids(examples, engine.labels, file))
    truth = np.array(data.scores(examples, file))
    if len(set(truth)) < 2:
        raise ConfigError(f"{source}: all {len(truth)} rows have the same score, so there is no correlation")
    return truth


def _metrics(engine: Engine, source: str | Path, asked: Sequence[str]) -> tuple[str, ...]:
    problem, task = engine.model.config.problem_type, tasks.find(str(source))
    for name in asked:
        if name not in METRICS:
            raise ConfigError(f"metric {name!r} is unknown; there are {', '.join(METRICS)}")
    fitting = FITTING[problem]
    if any(name not in fitting for name in asked):
        raise ConfigError(f"metrics {', '.join(asked)}: a {problem} model is scored by {' or '.join(fitting)}")
    if asked:
        return tuple(asked)
    if task is not None and all(name in fitting for name in task.metrics):
        return task.metrics
    return ("accuracy",) if problem == SINGLE else fitting


def _choices(engine: Engine, path: str, thresholds: Sequence[float], speedups: Sequence[float]) -> list[Choice]:
    if not thresholds and not speedups and len(engine.exit_layers) > 1:
        speedups = [p["layer_speedup"] for p in engine.checkpoint.manifest.calibration if p["layer_speedup"] > 1]
    choices: list[Choice] = [(engine, path, "full depth", Never())]
    choices += [(engine, path, f"threshold {t:g}", engine.choose(threshold=t)) for t in thresholds]
    return choices + _at_speedups(engine, path, speedups)


def _beside(engine: Engine, path: str, speedups: Sequence[float]) -> list[Choice]:
    """Settings of a checkpoint to compare: the same speed-ups where it has exits and its table covers them.

    At a speed-up of 1 it is at full depth, though its criterion lets rows leave at every threshold.
    """
    table = [point["layer_speedup"] for point in engine.checkpoint.manifest.calibration]
    reached = [s for s in speedups if table and min(table) <= s <= max(table)]
    full: list[Choice] = [(engine, path, "full depth", Never())]
    choices = _at_speedups(engine, path, reached)
    return full + choices if not choices or (1 in speedups and 1 not in reached) else choices


def _at_speedups(engine: Engine, path: str, speedups: Sequence[float]) -> list[Choice]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they cost is measured here
        return [(engine, path, f"speedup {s:.3g}", engine.choose(speedup=s)) for s in speedups]


def _run(
    engine: Engine, rule: Any, examples: Sequence[Example | TaggedExample], batch_tokens: int, batch_size: int | None
) -> Predictions:
    rows = (example.row for example in examples)
    return engine.predict(rows, criterion=rule, batch_tokens=batch_tokens, batch_size=batch_size)


def _setting(
    choice: Choice,
    result: Predictions,
    examples: Sequence[Example | TaggedExample],
    truth: np.ndarray,
    names: Metrics,
    words: Words | None,
    num_layers: int,
    wall_clock: float,
    seconds: float,
    keep: bool,
) -> Setting:
    engine, path, name, rule = choice
    of_tokens: float | None = None
    taken = result.exit_layers[result.exit_layers > 0]  # those of words are padded
    if words is None:
        answers = answers_of(result.logits, _label_sets(engine))
    else:
        answers = words.flat(result.label_ids, result.exit_layers > 0, UNANSWERED)
        freezes = isinstance(rule, DataCriterion) and (token_rule := rule.tokens()) is not None and token_rule.freezes
        rows = [example.row for example in examples]
        of_tokens = token_speedup(engine, rows, result.exit_layers, freezes) * num_layers / engine.num_layers
    layers, counts = np.unique(taken, return_counts=True)
    return Setting(
        checkpoint=path,
        name=name,
        threshold=rule.threshold if isinstance(rule, Criterion) and not isinstance(rule.threshold, tuple) else None,
        metrics=measure(names, answers, truth),
        standard_error=standard_error(leading(names), answers, truth),
        layer_speedup=layer_speedup(taken, num_layers),
        wall_clock_speedup=wall_clock,
        seconds=seconds,
        exit_layers={int(layer): int(count) for layer, count in zip(layers, counts, strict=True)},
        token_speedup=of_tokens,
        answers=answers.tolist() if keep and words is None else None,
    )


def _curve(
    engine: Engine, path: str, texts: list[Any], truth: np.ndarray, names: Metrics, words: Words | None
) -> Curve:
    criterion, layers = engine.checkpoint.manifest.criterion or "never", engine.exit_layers
    models = None if engine.cascade is None else answers_of_models(engine, texts)
    if models is None:
        logits, learned = engine.layer_scores(texts)
    else:
        logits, learned, layers = models.logits, None, models.ends
    bounds = None
    if words is not None:  # from here on every word is a row
        answered = ~np.isnan(logits[-1, ..., 0])
        words = words.kept(answered)
        assert words.truth is not None
        truth, names, bounds = words.truth, words.metrics(tuple(names)), words.bounds.astype(np.int32)
        logits = np.stack([each[answered] for each in logits])
    exits = judge_exits(logits, truth, layers, names, learned)
    if len(layers) == 1:
        return Curve(path, "never", [], None, exits)
    best = None if _regression(engine) else oracle(logits, truth, layers, names)
    if best is not None and models is not None:
        best = models.recount_oracle(best, truth)
    if criterion == "never":
        return Curve(path, "never", [], best, exits)
    rule = parse_form(criterion)
    form = rule.form if isinstance(rule, DataCriterion) else criterion
    tokens = rule.tokens() if isinstance(rule, DataCriterion) else None
    if tokens is not None and tokens.freezes:  # the exits do not follow from these logits
        return Curve(path, form, [], best, exits)
    points = curve(rule, logits, truth, layers, names, learned=learned, bounds=bounds)
    points = points if models is None else models.recounted(points, rule)
    return Curve(path, form, points, best, exits)
