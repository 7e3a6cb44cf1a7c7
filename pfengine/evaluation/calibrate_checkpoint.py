"""Calibrating a checkpoint on held-out rows: its table, its guarantee, and which layers are tested."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, saving
from ..api import Engine, load
from ..bundled import BUNDLED
from ..cascade_manifest import CascadeManifest
from ..cascade_reader import CascadeCheckpoint, read_cascade
from ..cascade_saving import fill_again
from ..checkpoint import Checkpoint
from ..engine import LayerScores
from ..errors import ConfigError, shown
from ..exits import Criterion, DataCriterion, Never, Numbers
from ..exits.base import MULTI, REGRESSION, number
from ..exits.calibration import calibration_table, exits_taken
from ..exits.guarantee import Guarantee, guarantee
from ..exits.placement import Placement, judge, place
from ..exits.selection import choose
from ..exits.text import check_fits, lacks_threshold, parse_form
from ..heads import HEADS
from ..messages import warn
from ..per_row import own_exits
from ..reader import read
from .costs import measure_costs
from .model_answers import answers_of_models
from .precisions import check_precisions

FEW_ROWS = 30
AGREEMENT = 0.99  # promised where only a tolerance is given


@dataclass(frozen=True)
class LayerChoice:
    """Exits chosen by time: predicted and measured seconds per row, beside those of all exits at equal agreement."""

    chosen: Placement
    every: Placement
    measured_seconds: float
    measured_every: float
    measured_full_depth: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found and wrote."""

    checkpoint: str
    data: str
    rows: int
    criterion: str
    threshold: float | None
    exit_layers: tuple[int, ...]
    table: list[dict[str, Any]]
    guarantee: Guarantee | None
    layers: LayerChoice | None
    precisions: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
    (which a bundled checkpoint needs). notify: is told what is being done, a line a stage.

    Raises ConfigError for options and data that do not fit, CheckpointError for the checkpoint, TooFewRows where the
    promise cannot be proved on so few rows.
    """
    if agreement is not None and accuracy_drop is not None:
        raise ConfigError("give agreement or accuracy_drop, not both")
    if speedup is not None and (agreement is not None or accuracy_drop is not None):
        raise ConfigError("give speedup or a promise, not both: each sets the threshold")
    agreement = None if agreement is None else _share("agreement", agreement)
    accuracy_drop = None if accuracy_drop is None else _share("accuracy_drop", accuracy_drop)
    confidence = _share("confidence", confidence)
    if tolerance is not None and (tolerance := number("tolerance", tolerance)) < 0:
        raise ConfigError(f"tolerance is {tolerance!r}; it must be at least 0")
    if speedup is not None and (speedup := number("speedup", speedup)) < 1:
        raise ConfigError(f"speedup is {speedup!r}; it must be at least 1")
    engine = load(path, precision="fp32", criterion="never")
    directory = engine.checkpoint.path
    if out is None and BUNDLED in directory.parents:
        raise ConfigError(f"{path} is bundled with the package; give the calibrated copy a directory with out")
    target = directory if out is None or os.path.realpath(out) == os.path.realpath(directory) else Path(out)
    own = _criterion(engine, criterion)
    cascaded = isinstance(engine.checkpoint, CascadeCheckpoint)
    if cascaded and (choose_layers or speedup == 1):
        raise ConfigError(
            f"{path} is a cascade: choose_layers is for one of its models, and at speed-up 1 the last model runs alone"
        )
    regression = engine.model.config.problem_type == REGRESSION
    _check_promise(engine, tolerance, agreement, accuracy_drop, choose_layers)
    if tolerance is not None and agreement is None and speedup is None:
        agreement = AGREEMENT
    saving.check_writable(target, cascaded)
    columns: dict[str, Any] = {"text": text_column, "pair": pair_column, "label": label_column}
    examples = data.read(data.locate(source, "dev"), **columns, kind=data_format)
    labelled = any(example.label is not None for example in examples)
    if accuracy_drop is not None and not labelled:
        raise ConfigError(
            f"{data.display_name(Path(source))} has no labels, which accuracy_drop needs; agreement does not"
        )
    labels = None
    if labelled:
        file = data.display_name(Path(source))
        labels = np.array(data.scores(examples, file) if regression else data.label_ids(examples, engine.labels, file))
    texts = [example.row for example in examples]
    if len(texts) < FEW_ROWS:
        warn(f"{source} has {len(texts)} rows; thresholds from fewer than {FEW_ROWS} are unreliable")
    if choose_layers and engine.exit_layers != every_exit(engine):
        whole = read(directory)
        every = replace(whole.manifest, exit_layers=every_exit(engine))  # whatever was chosen earlier
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
        wanted = _agreement_at(own, scores, exit_layers, agreement, speedup, tolerance)
        chosen_on = fresh
        if agreement is not None or accuracy_drop is not None:
            # A promise holds only for layers that its rows had no part in choosing.
            chosen_on, fresh = np.array_split(np.random.default_rng(0).permutation(len(texts)), 2)
        part = _of_rows(scores, chosen_on)
        choice = _choose_layers(engine, own, [texts[i] for i in chosen_on], part, wanted, tolerance, notify)
        exit_layers = choice.chosen.exit_layers
        own = own.for_exits(engine.exit_layers, exit_layers)
        places = [engine.exit_layers.index(layer) for layer in exit_layers]
        learned = None if scores.learned is None else scores.learned[places]
        scores = LayerScores(scores.logits[places], learned)
    notify("thresholds")
    table = calibration_table(own, scores.logits, labels, exit_layers, scores.learned, tolerance)
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
            tolerance=tolerance,
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
    manifest = replace(before, **(found if cascaded else found | {"exit_layers": exit_layers}))
    if speedup is not None and choice is None:
        now = own_exits(engine.checkpoint)._replace(criterion=own.form, threshold=None, calibration=table)
        rule = choose(now, None, None, speedup)
        reached = _slowest(own, scores, exit_layers) if isinstance(rule, Never) else float(rule.threshold)
        manifest = replace(manifest, threshold=reached)
    notify("bf16 and int8 beside fp32")
    if target == directory:
        with saving.trial(directory, manifest) as stage:
            precisions = check_precisions(stage, texts)
        saving.write_manifest(directory, replace(manifest, precisions=precisions))
    else:
        with saving.replacing(target, cascaded) as stage:
            written = _fill(stage, directory, manifest)
            precisions = check_precisions(stage, texts)
            saving.write_manifest(stage, replace(written, precisions=precisions))
    return Calibration(
        checkpoint=os.fspath(target),
        data=data.display_name(Path(source)) if Path(source) == data.STDIN else Path(source).name,
        rows=len(examples),
        criterion=manifest.criterion or "",
        threshold=manifest.threshold,
        exit_layers=exit_layers,
        table=table,
        guarantee=promised,
        layers=choice,
        precisions=precisions,
    )


def _fill(stage: Path, source: Path, manifest: saving.AnyManifest) -> saving.AnyManifest:
    """A copy of the checkpoint at `source`, with another manifest; returns what it says then."""
    if isinstance(manifest, CascadeManifest):
        return fill_again(stage, read_cascade(source), manifest)
    ckpt = read(source)
    return saving.fill(stage, ckpt.backbone.raw, manifest, ckpt.tensors, ckpt.tokenizer)


def _share(name: str, value: Any) -> float:
    """A number between 0 and 1, of numpy or not, as a Python float."""
    share = number(name, value)
    if not 0 < share < 1:
        raise ConfigError(f"{name} is {value!r}; it must be between 0 and 1")
    return share


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
    if engine.model.head.tags:
        raise ConfigError(f"calibrate compares one label or score per row, and {engine.checkpoint.path} tags tokens")
    rule = parse_form(text)
    check_fits(rule, own_exits(engine.checkpoint).outputs, text)
    if not isinstance(rule, DataCriterion) or rule.threshold is None:
        raise ConfigError(f"criterion {shown(rule)} has no threshold that its text could be written without")
    if engine.model.config.problem_type == MULTI:
        raise ConfigError(
            f"calibrate compares one label or score per row, and {engine.checkpoint.path} has problem_type {MULTI!r}; "
            "give a threshold yourself"
        )
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
) -> float:
    """The agreement that chosen layers must keep: the one asked for, or that of all exits at `speedup` (default 2)."""
    if agreement is not None:
        return agreement
    table = calibration_table(own, scores.logits, None, exit_layers, scores.learned, tolerance)
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
    notify: Callable[[str], None],
) -> LayerChoice:
    notify("costs of layers and heads")
    costs = measure_costs(engine, texts[:512], own)
    notify(f"which exits to test, at {agreement:.2%} agreement with full depth")
    logits, layers, learned = scores.logits, engine.exit_layers, scores.learned
    chosen = place(own, logits, layers, costs, agreement, learned, tolerance)
    every = judge(own, logits, layers, layers, costs, agreement, learned, tolerance)
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
