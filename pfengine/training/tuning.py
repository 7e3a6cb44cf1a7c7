"""A faster model from a finished one and unlabelled text: exits, and the encoder if wanted, learn what it answers.

The finished model stays the judge. Every figure, and the promise, is agreement with its answers in fp32.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .. import data, reader, saving
from ..api import Engine, load
from ..bundled import find
from ..cascade_manifest import CascadeManifest
from ..cascade_saving import fill_cascade, part_of
from ..checkpoint import Checkpoint
from ..errors import ConfigError
from ..evaluation.tuned import Candidate, Tuned, report, risk_of_each, search
from ..exits.base import MULTI, REGRESSION, SINGLE, number
from ..exits.guarantee import rows_needed
from ..heads.classifier import Classifier
from ..manifest import Manifest
from .augmenting import augmented
from .config import TrainingConfig
from .criterion import add_calibration
from .finished import check_model, check_system, criterion_of, exits_of
from .fit import fit, remove_state
from .model import ExitModel
from .phases import Phase
from .pretrained import read_encoder
from .resume import hash_files, hash_rows
from .rows import Collator, encode
from .stored_states import answers_of
from .systems import SYSTEMS

EXIT_RATE = 1e-3  # of exits, where no learning rate is given
PASS = 1024  # rows that the finished model answers at a time, between which progress is shown


def tune(
    model: str | os.PathLike[str],
    source: str | Path,
    output: str | os.PathLike[str],
    *,
    agreement: float = 0.99,
    confidence: float = 0.95,
    tolerance: float | None = None,
    encoder_rate: float = 0.0,
    fallback: bool | None = None,
    augment: float = 3.0,
    hold_out: int | None = None,
    max_length: int | None = None,
    max_rows: int | None = 50_000,
    progress: Any = None,
    **options: Any,
) -> Tuned:
    """Make the plain sequence-classification directory `model` faster, from unlabelled text, and keep a promise.

    Exits of the system `system` (default: the engine's own recipe) are trained to answer as the model does, on the
    texts and on rows made of them (`augment` times as many; see `augmenting`), at the learning rate `learning_rate`
    (default: 1e-3). encoder_rate: the learning rate at which encoder and classifier then move too, for one epoch; 0:
    they stay, and full depth answers as the model, bit for bit.

    Then the fastest setting is searched for that keeps the promise on texts that training has not seen: with a
    probability of at least `confidence` over these texts, at least `agreement` of future rows get the label, or the set
    of labels, that the model gives in fp32. Of a model that gives scores of regression they get a score within
    `tolerance` of its, which must be given then; exits agree by the criterion "patience:,tolerance" unless another is
    given. A setting is a precision, the exits that are tested, a threshold, and whether rows of which no exit is
    sure fall back to the model itself (`fallback`; default: only where the encoder moves). All settings that are
    compared share the risk 1 - confidence equally. What is written is a checkpoint, or a cascade of it and the model
    where rows fall back. `load` runs it in the precision that the promise was shown for.

    source: what `attach` reads; labels in it are used in the report only. hold_out: texts that the promise is shown on;
    default: half of them. max_rows: how many of the first texts are used. options: further ones of `TrainingConfig`.
    progress: wraps a pass over the texts, given how many parts there are.

    Raises ConfigError where data, model or options do not fit, or where the texts are too few for the promise,
    NotShown where no setting keeps it, CheckpointError for the directory, TrainingError where the loss stops being a
    number.
    """
    for name, value in (("agreement", agreement), ("confidence", confidence)):
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be between 0 and 1")
    for name, value in (("encoder_rate", encoder_rate), ("augment", augment)):
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value!r}; it must be a number of at least 0")
    if tolerance is not None and (tolerance := number("tolerance", tolerance)) <= 0:
        raise ConfigError(f"tolerance is {tolerance!r}; it must be above 0")
    fallback = encoder_rate > 0 if fallback is None else fallback
    output = Path(output)
    saving.check_writable(output, cascade=fallback)
    options.setdefault("learning_rate", EXIT_RATE)
    limits: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    config = TrainingConfig(
        os.fspath(model), os.fspath(source), os.fspath(output), max_rows=max_rows, **limits, **cast(Any, options)
    ).filled()
    check_system(config)
    original = reader.read(find(model))
    judge = load(original, precision="fp32", criterion="never", max_length=max_length)
    _check(original, model, tolerance)
    columns: dict[str, Any] = {
        "text": config.text_column, "pair": config.pair_column, "label": config.label_column
    }  # fmt: skip
    file = data.locate(source, "train")
    examples = _read(file, {**columns, "kind": config.data_format, "max_rows": config.max_rows})
    wanted = len(examples) // 2 if hold_out is None else hold_out
    if wanted < (needed := rows_needed(1 - agreement, risk_of_each(confidence, fallback))):
        raise ConfigError(
            f"{data.display_name(file)}: {wanted} of {len(examples)} texts are held out, and {needed} are needed to "
            f"show an agreement of {agreement:g} with confidence {confidence:g}, more where rows are answered "
            "otherwise; give more texts, or ask for less"
        )
    kept, held_out = data.split_off(examples, wanted, config.seed, data.display_name(file))
    kept_rows: list[Any] = [example.row for example in kept]
    unseen = [example.row for example in held_out]
    kept_rows += augmented(kept_rows, judge.tokenizer, augment, config.seed)
    inputs = {
        "data": hash_rows(kept, held_out),
        "model": hash_files(original.path),
        "tuning": f"{encoder_rate} {augment}",
    }
    if tolerance is not None and config.criterion is None:
        config = replace(config, criterion=f"patience:,{tolerance:g}")
    tuned = _trained(original, judge, config, encoder_rate, kept_rows, inputs, progress)
    answers = _answers(judge, unseen, progress)

    with tempfile.TemporaryDirectory(prefix=f".{output.name}.tuned.", dir=output.parent) as folder:
        stage = Path(folder, "tuned")
        stage.mkdir()
        saving.fill(stage, original.backbone.raw, tuned.manifest, tuned.tensors, original.tokenizer)
        values = {MULTI: None, REGRESSION: answers[:, 0], SINGLE: answers.argmax(1)}[original.backbone.problem_type]
        staged = reader.read(stage)
        candidates = search(
            staged, original, unseen, answers, [example.row for example in kept], agreement=agreement,
            confidence=confidence, fallback=fallback, max_length=judge.max_length, tolerance=tolerance,
        )  # fmt: skip
        best = max((each for each in candidates if each.promised), key=lambda each: each.predicted_rows_per_second)
        saving.write_manifest(stage, best.tested(staged.manifest))
        add_calibration(stage, unseen, values, 1.0, judge.max_length)
        _write(output, reader.read(stage), original, best)
    remove_state(config, tuned.recipe)
    return report(output, original, judge, unseen, answers, candidates, best, _truth(held_out, judge), tolerance)


class _Trained(NamedTuple):
    manifest: Manifest
    tensors: dict[str, Tensor]
    recipe: ExitModel


def _read(file: Path, options: dict[str, Any]) -> list[data.Example]:
    """The rows, with their labels where every row has one; these are for the report alone."""
    try:
        return data.read(file, **options)
    except ConfigError:
        return data.read(file, **options, labelled=False)


def _truth(examples: Sequence[data.Example], judge: Engine) -> np.ndarray | None:
    """Label ids, where the file has labels that are the model's."""
    found = [example.label for example in examples if example.label is not None]
    if len(found) < len(examples) or judge.model.config.problem_type != SINGLE:
        return None
    ids = data.read_as(found, judge.labels)
    return None if ids is None else np.array([ids[label] for label in found])


def _check(original: Checkpoint, model: str | os.PathLike[str], tolerance: float | None) -> None:
    check_model(original, model)
    if (original.backbone.problem_type == REGRESSION) != (tolerance is not None):
        raise ConfigError(
            f"{model} gives scores of regression; give tolerance, how far a score may be from the model's"
            if tolerance is None
            else f"tolerance is for scores of regression, and {model} gives labels; give agreement alone"
        )


def _trained(
    original: Checkpoint,
    judge: Engine,
    config: TrainingConfig,
    encoder_rate: float,
    rows: Sequence[Any],
    inputs: dict[str, str],
    progress: Any,
) -> _Trained:
    """The model with exits, trained on what the judge answers to the rows. inputs: as in `fit`."""
    system, backbone = SYSTEMS[config.system], original.backbone
    exits = exits_of(config, backbone)
    written = criterion_of(config, exits, backbone)
    head = {"type": "attached", "exits": exits}  # full depth begins as the model itself
    torch.manual_seed(config.seed)
    encoder, _ = read_encoder(original.path, backbone)
    recipe = system.recipe(encoder, backbone, head, dropout=config.dropout, options=config.flat())
    # methods of heads, labels or files of a kind of their own
    fixed = ("after_training", "head", "fill", "phases")
    if recipe.cascade or any(getattr(type(recipe), name) is not getattr(ExitModel, name) for name in fixed):
        raise ConfigError(f"system is {config.system!r}, whose recipe does not train exits of a finished model")
    logits = torch.from_numpy(_answers(judge, rows, progress))
    if backbone.problem_type == REGRESSION:
        recipe.start_at(float(logits.mean()))
    own_classifier = {key: original.tensors[key] for key in Classifier.shapes(backbone, {})}
    recipe.load_head({**recipe.head_tensors(), **own_classifier})
    of_exits = {id(value) for key, value in recipe.head_tensors().items() if key not in own_classifier}
    names = {name for name, value in recipe.named_parameters() if id(value) in of_exits}
    recipe.own_rates = dict.fromkeys(names, cast(float, config.learning_rate))
    recipe.schedule, recipe.still = (Phase("exits", trains=names.__contains__),), not encoder_rate
    if encoder_rate:
        recipe.schedule += (Phase("exits and encoder", epochs=1.0, learning_rate=encoder_rate),)
    wanted = answers_of(logits, backbone.problem_type)
    labels = wanted.tolist() if wanted.dim() == 1 else list(wanted.numpy())
    fit(recipe, recipe, encode(rows, labels, judge.tokenizer), config, Collator(backbone), inputs)
    manifest = Manifest(
        system="attached",
        head=head,
        criterion=written,
        exit_layers=recipe.exit_layers,
        training=config.record() | {"rows": len(rows), "encoder_rate": encoder_rate},
    )
    return _Trained(manifest, recipe.checkpoint_tensors(), recipe)


def _answers(engine: Engine, rows: Sequence[Any], progress: Any) -> np.ndarray:
    """The full model's logits, float32 [rows, labels]."""
    starts: Iterable[int] = range(0, len(rows), PASS)
    shown = progress(starts, len(range(0, len(rows), PASS))) if progress is not None else starts
    return np.concatenate([engine.predict(rows[start : start + PASS]).logits for start in shown])


def _write(output: Path, tuned: Checkpoint, original: Checkpoint, best: Candidate) -> None:
    """The checkpoint at the promised threshold, or a cascade of it and the model."""
    assert best.promised is not None
    threshold, promise = best.promised.threshold, best.record()
    if not best.falls_back:
        manifest = replace(tuned.manifest, threshold=threshold, guarantee=promise)
        with saving.replacing(output) as stage:
            saving.fill(stage, tuned.backbone.raw, manifest, tuned.tensors, tuned.tokenizer)
        return
    assert tuned.manifest.criterion is not None
    first = replace(tuned, manifest=replace(tuned.manifest, threshold=threshold))
    cascade = CascadeManifest(
        2, "tuned", tuned.manifest.criterion, threshold, guarantee=promise, training=tuned.manifest.training
    )
    with saving.replacing(output, cascade=True) as stage:
        fill_cascade(stage, cascade, [part_of(first), part_of(original)])
