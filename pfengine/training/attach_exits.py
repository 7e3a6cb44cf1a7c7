"""Adding exits to a fine-tuned model, from unlabelled text: only the exits are trained, to agree with the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from .. import data, reader, saving
from ..api import load
from ..bundled import find
from ..errors import ConfigError
from ..exits.base import MULTI, REGRESSION, SINGLE
from ..heads import Attached
from ..manifest import Manifest
from ..messages import warn
from .config import TrainingConfig
from .criterion import add_calibration
from .finished import check_model, check_system, criterion_of, exits_of
from .fit import fit, remove_state
from .model import ExitModel
from .resume import hash_files, hash_rows
from .stored_states import OnStates, encoded, read_states, stack
from .systems import SYSTEMS


def attach(
    model: str | os.PathLike[str],
    source: str | Path,
    output: str | os.PathLike[str],
    *,
    system: str = "past-future",
    form: str | None = None,
    pooler: str | None = None,
    learner: str | None = None,
    incorporate: str | None = None,
    states: str | None = None,
    gate: str | None = None,
    reads: str | None = None,
    criterion: str | None = None,
    data_format: str = "auto",
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    epochs: float = 5.0,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.06,
    dropout: float = 0.1,
    max_length: int | None = None,
    hold_out: int = 1000,
    max_rows: int | None = 50_000,
    seed: int = 0,
    save_every: int = 500,
    speedup: float = 2.0,
    options: Mapping[str, Any] | None = None,
    progress: Any = None,
) -> Path:
    """Train exit heads for the plain sequence-classification directory `model` on unlabelled text; returns `output`.

    source: what `pfengine classify --file` reads (plain text, one row per line; TSV, CSV, JSON lines, Parquet; `-` for
    standard input), or a directory with a `train` split; labels in it are not read. The encoder and the classifier are
    written as they are, so that the full depth answers as before, bit for bit. Every text runs through the model once,
    or twice where exits read more than first tokens. The heads are then trained on its states, by the system's own
    loss, with the model's probabilities, or scores, as labels. hold_out: rows the exits are not trained on; thresholds
    are calibrated on them by agreement with the full model. max_length: default: the tokenizer's. max_rows: how many of
    the first rows are used; each takes layers x hidden size x 4 bytes of memory, and for exits that read all tokens as
    much for each token. Other options are those of `TrainingConfig`, criterion among them; the form is the authors' by
    default, as its poolers can bend what a frozen encoder gives.
    progress: wraps the pass over the texts, given how many there are.

    Raises ConfigError where data, model or options do not fit, CheckpointError for the directory, TrainingError where
    the loss stops being a number.
    """
    output = Path(output)
    saving.check_writable(output)
    if form is None and system in SYSTEMS and "form" in SYSTEMS[system].options:
        form = "authors"
    limits: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    config = TrainingConfig(
        os.fspath(model), os.fspath(source), os.fspath(output), system=cast(Any, system), form=form,
        pooler=pooler, learner=learner, incorporate=incorporate, states=states, gate=gate, reads=reads,
        criterion=criterion, data_format=data_format, text_column=text_column, pair_column=pair_column,
        label_column=label_column, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, warmup=warmup, dropout=dropout, averaging=0.0,
        hold_out=hold_out, max_rows=max_rows, seed=seed, save_every=save_every, speedup=speedup, precision="fp32",
        options=options or {}, **limits,
    )  # fmt: skip
    check_system(config)
    limit = None if max_length is None else config.max_length
    ckpt = reader.read(find(model))  # only once, as the files may be replaced in the meantime
    teacher = load(ckpt, precision="fp32", criterion="never", max_length=limit)
    check_model(ckpt, model)
    problem, head = ckpt.backbone.problem_type, exits_of(config, ckpt.backbone)
    columns: dict[str, Any] = {"text": text_column, "pair": pair_column, "label": label_column}
    file = data.locate(source, "train")
    examples = data.read(file, **columns, kind=data_format, labelled=False, max_rows=config.max_rows)
    kept, held_out = data.split_off(examples, config.hold_out, config.seed, data.display_name(file))

    torch.manual_seed(config.seed)
    exits = SYSTEMS[config.system].recipe(None, ckpt.backbone, head, dropout=config.dropout, options=config.flat())
    written = criterion_of(config, head, ckpt.backbone)
    if type(exits).after_training is not ExitModel.after_training:
        raise ConfigError(
            f"system is {config.system!r}, which is fitted to labelled rows after training; attach has no labels"
        )
    rows = encoded([example.row for example in kept], teacher)
    stored = read_states(ckpt, teacher, exits, rows, progress)
    if problem == REGRESSION:
        exits.start_at(float(stored.answers.mean()))
    inputs = {"data": hash_rows(kept, held_out), "model": hash_files(ckpt.path)}
    fit(OnStates(exits), exits, stored, config, stack, inputs)

    attached = {"type": "attached", "exits": head}
    record = {key: getattr(config, key) for key in ("epochs", "batch_size", "learning_rate", "dropout")}
    manifest = Manifest(
        system="attached",
        head=attached,
        criterion=written,
        exit_layers=Attached.layers(ckpt.backbone, attached),
        training=record
        | {
            "data": Path(source).name,
            "rows": len(kept),
            "held_out_rows": len(held_out),
            "seed": config.seed,
        },
    )
    tensors = {**ckpt.tensors, **{key: value.detach().cpu() for key, value in exits.head_tensors().items()}}
    unseen = [example.row for example in held_out]
    full = teacher.predict(unseen)
    answers = {SINGLE: full.label_ids, REGRESSION: full.logits[:, 0], MULTI: None}[problem]
    with saving.replacing(output) as stage:
        saving.fill(stage, ckpt.backbone.raw, manifest, tensors, ckpt.tokenizer)
        add_calibration(stage, unseen, answers, config.speedup, teacher.max_length)
    remove_state(config, exits)
    if written == "never":
        warn(
            f"{output} has exits, and no criterion lets rows leave there yet: give `calibrate` one, such as "
            "patience:,0.1, or --rank for the best documents of a query"
        )
    return output
