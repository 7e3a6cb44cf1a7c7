"""Calibrating a checkpoint on held-out rows: its table, its guarantee, and which layers are tested."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, saving
from ..api import Engine, load
from ..cascade_reader import CascadeCheckpoint
from ..checkpoint import Checkpoint
from ..engine import LayerScores
from ..errors import ConfigError, shown
from ..exits import Criterion, DataCriterion, Never, Numbers
from ..exits.base import MULTI, REGRESSION, number, share
from ..exits.calibration import calibration_table, exits_taken
from ..exits.guarantee import Guarantee, guarantee
from ..exits.placement import judge, place
from ..exits.selection import choose
from ..exits.text import check_fits, lacks_threshold, parse_form
from ..heads import HEADS
from ..manifest import Manifest
from ..messages import warn
from ..per_row import own_exits
from ..reader import read
from .calibrated import Calibration, LayerChoice, outcome, target_of, warn_of_few, write
from .costs import measure_costs
from .model_answers import answers_of_models
from .tagged import Words, tag_table

AGREEMENT = 0.99  # promised where only a tolerance is given


def calibrate(
    path: str | os.PathLike[str],
    source: str | Path,
    *,
    criterion: str | None = None,
    speedup: float | None = None,
    agreement: float | None = None,
    accuracy_drop: float | None = None,
    tolerance: float | None = None,
    confidence: float = 0.95,
    choose_layers: bool = False,
    out: str | os.PathLike[str] | None = None,
    data_format: str = "auto",
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    notify: Callable[[str], None] = lambda stage: None,
) -> Calibration:
    """Calibrate a checkpoint on rows it was not trained on, and write the result into it.

    Of a cascade the criterion between its models is calibrated. There agreement is with what the last model answers,
    and a layer speed-up is against the layers of the last model.

    source: a file or a directory with a `dev` split; labels are used where there are any. data_format, text_column,
    pair_column, label_column: as in `data.stream`. criterion: a new one as text, such as "patience" or "elbert:,8,0.1",
    whose second parameters stay; default: the checkpoint's own. The threshold it will run at is, by the first that is
    given: the one that keeps the promise (agreement 0.99: at least 99% of rows answered as at full depth; accuracy_drop
    0.01: accuracy falls by at most a point; both with `confidence`, see `exits.guarantee`), or the one for the layer
    speed-up `speedup`; else the one it has. tolerance: for regression, how far a score may be from the one at full
    depth to agree with it; without `agreement` and `speedup` it promises that of 99% of rows. choose_layers: test only
    those layers whose exits save time, at equal agreement with the full model. Thresholds are found in fp32; how bf16
    and int8 compare is written beside them, for `load(precision="auto")` to go by. out: write there, not to `path`
    (which a bundled checkpoint needs). notify: is told what is being done, a line a stage. A tagger has no promise and
    no choice of layers; its table counts words.

    Raises ConfigError for options and data that do not fit, CheckpointError for the checkpoint, TooFewRows where the
    promise cannot be proved on so few rows.
    """
    if agreement is not None and accuracy_drop is not None:
        raise ConfigError("give agreement or accuracy_drop, not both")
    if speedup is not None and (agreement is not None or accuracy_drop is not None):
        raise ConfigError("give speedup or a promise, not both: each sets the threshold")
    agreement = None if agreement is None else share("agreement", agreement)
    accuracy_drop = None if accuracy_drop is None else share("accuracy_drop", accuracy_drop)
    confidence = share("confidence", confidence)
    if tolerance is not None and (tolerance := number("tolerance", tolerance)) < 0:
        raise ConfigError(f"tolerance is {tolerance!r}; it must be at least 0")
    if speedup is not None and (speedup := number("speedup", speedup)) < 1:
        raise ConfigError(f"speedup is {speedup!r}; it must be at least 1")
    engine = load(path, precision="fp32", criterion="never")
    directory, tags = engine.checkpoint.path, engine.model.head.tags
    if tags and (choose_layers or agreement is not None or accuracy_drop is not None):
        raise ConfigError(
            f"{path} tags words, and those of a row are not independent: no promise can be proved on them, nor layers "
            "chosen by it; give speedup"
        )
    target = target_of(engine, path, out)
    own, before_layers, ranking = _criterion(engine, criterion), engine.exit_layers, _ranking(engine)
    cascaded = isinstance(engine.checkpoint, CascadeCheckpoint)
    if cascaded and (choose_layers or speedup == 1):
        raise ConfigError(
            f"{path} is a cascade: choose_layers is for one of its models, and at speed-up 1 the last model runs alone"
        )
    regression, label_sets = (engine.model.config.problem_type == kind for kind in (REGRESSION, MULTI))
    _check_promise(engine, tolerance, agreement, accuracy_drop, choose_layers)
    if tolerance is not None and agreement is None and speedup is None:
        agreement = AGREEMENT
    saving.check_writable(target, cascaded)
    columns: dict[str, Any] = {"text": text_column, "pair": pair_column, "label": label_column}
    if tags:
        tagged = data.read_tagged(data.locate(source, "dev"), **columns, kind=data_format)
        return _calibrate_tags(engine, own, tagged, source, criterion, speedup, target, notify)
    examples = data.read(data.locate(source, "dev"), **columns, kind=data_format)
    labelled = any(example.label is not None for example in examples)
    if accuracy_drop is not None and not labelled:
        raise ConfigError(
            f"{data.display_name(Path(source))} has no labels, which accuracy_drop needs; agreement does not"
        )
    labels = None
    if labelled and not label_sets:
        file = data.display_name(Path(source))
        labels = np.array(data.scores(examples, file) if regression else data.label_ids(examples, engine.labels, file))
    texts = [example.row for example in examples]
    warn_of_few(texts, source)
    if choose_layers and engine.exit_layers != every_exit(engine):
        whole = read(directory)
        every = replace(whole.manifest, exit_layers=every_exit(engine), ranking=None)  # whatever was chosen earlier
        engine = load(replace(whole, manifest=every), precision="fp32", criterion="never")
    models = None
    if cascaded:
        notify(f"answers of each model to {len(texts)} rows")
        models = answers_of_models(engine, texts)
        exit_layers, scores = models.ends, LayerScores(models.logits, None)
    else:
        exit_layers = engine.exit_layers
        notify(f"logits of {len(texts)} rows at {len(exit_layers)} exits")
        scores = engine.layer_scores(texts)

    choice, fresh = None, np.arange(len(texts))
    if choose_layers:
        wanted = _agreement_at(own, scores, exit_layers, agreement, speedup, tolerance, label_sets)
        chosen_on = fresh
        if agreement is not None or accuracy_drop is not None:
            # A promise holds only for layers that its rows had no part in choosing.
            chosen_on, fresh = np.array_split(np.random.default_rng(0).permutation(len(texts)), 2)
        part = _of_rows(scores, chosen_on)
        choice = _choose_layers(engine, own, [texts[i] for i in chosen_on], part, wanted, tolerance, label_sets, notify)
        exit_layers = choice.chosen.exit_layers
        own = own.for_exits(engine.exit_layers, exit_layers)
        places = [engine.exit_layers.index(layer) for layer in exit_layers]
        learned = None if scores.learned is None else scores.learned[places]
        scores = LayerScores(scores.logits[places], learned)
    notify("thresholds")
    table = calibration_table(own, scores.logits, labels, exit_layers, scores.learned, tolerance, label_sets=label_sets)
    if models is not None:
        table = models.recounted(table, own)
    promised: Guarantee | None = None
    threshold = choice.chosen.threshold if choice else _threshold(engine, own, criterion)
    if agreement is not None or accuracy_drop is not None:
        limit = 1 - agreement if agreement is not None else float(accuracy_drop or 0)
        against = labels[fresh] if labels is not None and agreement is None else None
        part = _of_rows(scores, fresh)
        promised = guarantee(
            own, part.logits, against, exit_layers, limit=limit, confidence=confidence, learned=part.learned,
            tolerance=tolerance, label_sets=label_sets,
        )  # fmt: skip
        if models is not None:
            promised = models.recount_guarantee(promised, own)
        threshold = promised.threshold
    found: dict[str, Any] = {
        "criterion": repr(own.with_threshold(threshold)) if isinstance(threshold, tuple) else own.form,
        "threshold": None if isinstance(threshold, tuple) else threshold,
        "calibration": tuple(table),
        "guarantee": None if promised is None else asdict(promised),
    }
    before = engine.checkpoint.manifest
    if not cascaded:
        if ranking is not None and exit_layers != before_layers:
            warn(f"{path} had margins for ranking, which are of other exits; calibrate it for ranking again")
            ranking = None
        found |= {"exit_layers": exit_layers, "ranking": ranking}
    manifest = replace(before, **found)
    if speedup is not None and choice is None:
        rule = _at_speedup(engine, own, table, speedup)
        reached = _slowest(own, scores, exit_layers) if isinstance(rule, Never) else float(rule.threshold)
        manifest = replace(manifest, threshold=reached)
    precisions = write(engine, manifest, target, texts, notify)
    return outcome(manifest, target, source, len(examples), exit_layers, promised, choice, precisions)


def _calibrate_tags(
    engine: Engine,
    own: DataCriterion,
    examples: list[data.TaggedExample],
    source: str | Path,
    text: str | None,
    speedup: float | None,
    target: Path,
    notify: Callable[[str], None],
) -> Calibration:
    """`calibrate` of a tagger, whose table counts words and, in span F1, entities."""
    rows: list[Any] = [example.row for example in examples]
    warn_of_few(rows, source)
    notify(f"thresholds on {len(rows)} rows")
    words = Words.of(examples, engine.labels, data.display_name(Path(source)), engine.tokenizer.side)
    table = tag_table(engine, own, rows, words)
    threshold = _threshold(engine, own, text)
    manifest = replace(
        engine.checkpoint.manifest,
        criterion=repr(own.with_threshold(threshold)) if isinstance(threshold, tuple) else own.form,
        threshold=None if isinstance(threshold, tuple) else threshold,
        calibration=tuple(table),
        guarantee=None,
    )
    if speedup is not None:
        rule = _at_speedup(engine, own, table, speedup)
        slowest = own.grid(len(engine.exit_layers), len(engine.labels))[0]  # no word leaves early
        manifest = replace(manifest, threshold=slowest if isinstance(rule, Never) else float(rule.threshold))
    precisions = write(engine, manifest, target, rows, notify)
    return outcome(manifest, target, source, len(rows), engine.exit_layers, None, None, precisions)


def _ranking(engine: Engine) -> dict[str, Any] | None:
    """The margins for ranking that the checkpoint has."""
    manifest = engine.checkpoint.manifest
    return manifest.ranking if isinstance(manifest, Manifest) else None


def every_exit(engine: Engine) -> tuple[int, ...]:
    """All layers that could answer; a plain classifier answers at the last layer only."""
    assert isinstance(engine.checkpoint, Checkpoint)
    head = engine.checkpoint.manifest.head
    return HEADS[head["type"]].layers(engine.model.config, head)


def _of_rows(scores: LayerScores, rows: np.ndarray) -> LayerScores:
    """The scores of these rows."""
    return LayerScores(scores.logits[:, rows], None if scores.learned is None else scores.learned[:, rows])


def _criterion(engine: Engine, text: str | None) -> DataCriterion:
    """The one to calibrate, at any threshold; its other parameters are those of the text, or the checkpoint's."""
    own = engine.checkpoint.manifest.criterion or "never"
    text = own if text is None else own_exits(engine.checkpoint).named(text)
    if text == "never" or (engine.cascade is None and len(every_exit(engine)) == 1):
        raise ConfigError(f"{engine.checkpoint.path} has no criterion, or no exit before its last layer, to calibrate")
    rule = parse_form(text)
    check_fits(rule, own_exits(engine.checkpoint).outputs, text)
    if not isinstance(rule, DataCriterion) or rule.threshold is None:
        raise ConfigError(f"criterion {shown(rule)} has no threshold that its text could be written without")
    return rule


def _check_promise(
    engine: Engine,
    tolerance: float | None,
    agreement: float | None,
    accuracy_drop: float | None,
    choose_layers: bool,
) -> None:
    """Raise ConfigError where the options are for labels and the model gives scores, or the other way round."""
    path = engine.checkpoint.path
    if engine.model.config.problem_type != REGRESSION:
        if tolerance is not None:
            raise ConfigError(f"tolerance is for scores of regression, and {path} gives labels; give agreement alone")
        if accuracy_drop is not None and engine.model.config.problem_type == MULTI:
            raise ConfigError(f"accuracy_drop is for one label per row, and {path} gives several; give agreement")
    elif accuracy_drop is not None:
        raise ConfigError(f"accuracy_drop is for labels, and {path} gives scores of regression; give tolerance")
    elif tolerance is None and (agreement is not None or choose_layers):
        what = "agreement" if agreement is not None else "choose_layers"
        raise ConfigError(
            f"{path} gives scores of regression: {what} needs tolerance, how far a score may be from the one at full "
            "depth"
        )


def _threshold(engine: Engine, own: DataCriterion, text: str | None) -> Numbers | None:
    """Where no threshold is searched for: the one in the text, or the checkpoint's where the criterion is its own."""
    before = engine.checkpoint.manifest
    if text is not None and not lacks_threshold(text):
        return own.threshold
    was = parse_form(before.criterion or "never")
    if not isinstance(was, DataCriterion) or was.form != own.form:
        return None
    if before.threshold is not None or lacks_threshold(before.criterion or "never"):
        return before.threshold
    return was.threshold


def _at_speedup(engine: Engine, own: DataCriterion, table: list[dict[str, Any]], speedup: float) -> Any:
    """The criterion at the threshold that the new table has for a layer speed-up."""
    now = own_exits(engine.checkpoint)._replace(criterion=own.form, threshold=None, calibration=table)
    return choose(now, None, None, speedup)


def _slowest(own: DataCriterion, scores: LayerScores, exit_layers: tuple[int, ...]) -> float:
    """The threshold for full depth."""
    threshold = own.grid(len(exit_layers), scores.logits.shape[2])[0]
    taken = exits_taken(own.with_threshold(threshold), scores.logits, exit_layers, learned=scores.learned)
    if (taken < exit_layers[-1]).any():
        raise ConfigError(f"criterion {shown(own)} lets rows leave at every threshold; for full depth take 'never'")
    return threshold


def _agreement_at(
    own: Criterion,
    scores: LayerScores,
    exit_layers: tuple[int, ...],
    agreement: float | None,
    speedup: float | None,
    tolerance: float | None,
    label_sets: bool,
) -> float:
    """The agreement that chosen layers must keep: the one asked for, or that of all exits at `speedup` (default 2)."""
    if agreement is not None:
        return agreement
    table = calibration_table(own, scores.logits, None, exit_layers, scores.learned, tolerance, label_sets=label_sets)
    if not table:
        raise ConfigError("none of these rows could leave early, so there is nothing to choose")
    nearest = min(table, key=lambda point: abs(point["layer_speedup"] - (speedup or 2.0)))
    return float(nearest["agreement"])


def _choose_layers(
    engine: Engine,
    own: DataCriterion,
    texts: list[Any],
    scores: LayerScores,
    agreement: float,
    tolerance: float | None,
    label_sets: bool,
    notify: Callable[[str], None],
) -> LayerChoice:
    notify("costs of layers and heads")
    costs = measure_costs(engine, texts[:512], own)
    notify(f"which exits to test, at {agreement:.2%} agreement with full depth")
    logits, layers, learned = scores.logits, engine.exit_layers, scores.learned
    chosen = place(own, logits, layers, costs, agreement, learned, tolerance, label_sets)
    every = judge(own, logits, layers, layers, costs, agreement, learned, tolerance, label_sets)
    if chosen is None or every is None:
        raise ConfigError(f"no threshold agrees with full depth on {agreement:.2%} of rows and lets a row leave")
    part = replace(engine.model, exit_layers=chosen.exit_layers)
    runs = [
        (engine.model, Never()),
        (engine.model, own.with_threshold(every.threshold)),
        (part, own.with_threshold(chosen.threshold)),
    ]
    notify("time of all exits, of those chosen and of full depth, in turn")
    seconds: list[list[float]] = [[] for _ in runs]
    whole = engine.model
    for repeat in range(4):  # interleaved; the first round warms up
        for i, (model, rule) in enumerate(runs):
            engine.model = model
            start = time.perf_counter()
            engine.predict(texts, criterion=rule)
            if repeat:
                seconds[i].append(time.perf_counter() - start)
    engine.model = whole
    full, all_exits, some = (float(np.median(times)) / len(texts) for times in seconds)
    return LayerChoice(chosen, every, some, all_exits, full)
