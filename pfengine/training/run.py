"""One training run: data, Trainer, checkpoint, calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint, data, saving, tasks
from ..data import Example, TaggedExample
from ..errors import ConfigError
from ..heads import HEADS
from ..manifest import Manifest
from ..messages import tell, warn
from ..tokenization import Tokenizer
from .config import TrainingConfig
from .criterion import add_calibration, add_tag_calibration, check_criterion
from .fit import fit, remove_state
from .freezing import Freezing
from .model import ExitModel
from .phases import held_out_scores
from .pretrained import encoder_config, read_encoder
from .resume import hash_files, hash_rows
from .rows import Collator, Rows, encode
from .systems import SYSTEMS
from .tagging import TagModel


def train(config: TrainingConfig) -> Path:
    """Train, write the checkpoint to `config.output`, calibrate its thresholds on the held-out rows. Returns the path.

    An interrupted run resumes from its last saved state when it is started again with the same configuration. Raises
    ConfigError or CheckpointError before any training where data, model or options do not fit, TrainingError where the
    loss stops being finite. A checkpoint at `config.output` is replaced only once the new one is complete.
    """
    try:
        from transformers import set_seed
    except ImportError:
        raise ConfigError("training needs transformers: pip install 'pfengine[train]'") from None
    asked, config = config.precision, config.filled()
    if (asked, config.precision) == ("auto", "fp32"):
        tell("training in fp32: there are no instructions for bf16 here")
    saving.check_writable(config.output)
    source = Path(config.model)
    file = data.locate(config.data, "train")
    name = data.display_name(file)
    columns: dict[str, Any] = {"text": config.text_column, "pair": config.pair_column, "label": config.label_column}
    tags = HEADS[config.head(shared_pooler=False)["type"]].tags
    if tags and isinstance(recipe := SYSTEMS[config.system].recipe, type) and not issubclass(recipe, TagModel):
        raise ConfigError(
            f"system {config.system!r} has a head that tags words; its recipe {recipe.__name__} must be a TagModel"
        )
    read: Callable[..., list[Any]] = data.read_tagged if tags else data.read
    examples = read(file, **columns, kind=config.data_format, labelled=True, max_rows=config.max_rows)
    labels = config.labels or _labels(examples, config.data, name)
    label_values(examples, labels, name)  # so that an error names the row of a wrong one
    if config.held_out is not None:
        kept, held_out = examples, read(config.held_out, **columns, labelled=True)
    else:
        kept, held_out = data.split_off(examples, config.hold_out, config.seed, name)
    values = label_values(held_out, labels, config.held_out or name)
    if not labels and len(set(values)) < 2:
        raise ConfigError(
            f"all {len(held_out)} held-out rows have the same score, so there is no correlation; hold out more rows"
        )
    unseen = _ids(values) - _ids(label_values(kept, labels, name)) if labels else set()
    if unseen:
        warn(f"no row with the label {labels[min(unseen)]!r} is left to train on")

    set_seed(config.seed)
    backbone_config = encoder_config(source, labels, config.layers)
    system, head = SYSTEMS[config.system], config.head(backbone_config.family.shares_pooler, backbone_config.num_layers)
    if faults := HEADS[head["type"]].misfits(backbone_config, head):
        raise ConfigError("; ".join(faults))
    last = HEADS[head["type"]].layers(backbone_config, head)[-1]
    if last < backbone_config.num_layers:  # no layer above the last exit is ever run
        backbone_config = encoder_config(source, labels, last)
    backbone, pooler = read_encoder(source, backbone_config)
    files = checkpoint.tokenizer_files(source)
    tokenizer = Tokenizer(files, backbone_config, min(config.max_length, backbone_config.max_tokens), path=source)
    written = system.criterion_of(head, regression=not labels)
    if written is None:
        raise ConfigError(
            f"system {config.system!r} cannot learn regression: its loss compares labels, and {name} has scores; "
            "choose another, such as 'pabee'"
        )
    criterion = config.criterion or written
    if config.freezing == "lower" and config.frozen_layers > backbone_config.num_layers:
        raise ConfigError(
            f"frozen_layers is {config.frozen_layers}; the encoder has {backbone_config.num_layers} layers"
        )
    freezing = Freezing(config.freezing, config.frozen_layers)
    if config.freezing == "layers" and backbone_config.family.shares_layers:
        raise ConfigError("freezing 'layers' needs layers with parameters of their own; ALBERT's share theirs")
    model = system.recipe(
        backbone, backbone_config, head, dropout=config.dropout, freezing=freezing, options=config.flat()
    )
    check_criterion(criterion, head, backbone_config, model.exit_layers)
    saving.check_writable(config.output, model.cascade)
    more = _unlabelled(config, model)
    inputs = {
        "data": hash_rows(kept, held_out, labels, *([more] if more else [])),
        "model": hash_files(*config.model_paths()),
    }
    collator = Collator(backbone_config)
    further = encode([example.row for example in more], None, tokenizer)
    if pooler is not None:
        model.initialise(pooler)
    if not labels:
        model.start_at(float(np.mean(label_values(kept, labels, name))))
    fit(model, model, _rows(kept, labels, tokenizer), config, collator, inputs, further)
    if type(model).after_training is not ExitModel.after_training:
        fitted = model.after_training(held_out_scores(model, _rows(held_out, labels, tokenizer).rows, collator))
        criterion = config.criterion or fitted or written

    manifest = Manifest(
        system=config.system,
        head=head,
        criterion=criterion,
        exit_layers=model.exit_layers,
        storage=config.storage,
        training=config.record() | {"rows": len(kept), "held_out_rows": len(held_out)},
    )
    with saving.replacing(config.output, model.cascade) as stage:
        model.fill(stage, manifest, files)
        rows = [example.row for example in held_out]
        if tags:
            add_tag_calibration(stage, rows, values, config.speedup, tokenizer.max_length)
        else:
            add_calibration(stage, rows, np.array(values), config.speedup, tokenizer.max_length)
    remove_state(config, model)
    return Path(config.output)


def _labels(examples: list[Any], source: str, file: str) -> tuple[str, ...]:
    """Label names in id order: the GLUE task's where they fit, else those in the data; none for regression."""
    if isinstance(examples[0], TaggedExample):
        return data.tag_names(examples, file)
    found = sorted({example.label for example in examples if example.label is not None})
    task = tasks.find(source)
    if task is not None and (task.regression or data.read_as(found, task.labels) is not None):
        return task.labels
    names = data.names_of(found)
    if len(names) == 1:
        raise ConfigError(f"{file}: all {len(examples)} rows have the label {names[0]!r}; a classifier needs two")
    return names


def label_values(examples: list[Any], labels: tuple[str, ...], file: str) -> list[Any]:
    """The targets of the loss: label ids, numbers for regression, or for rows of words a list of ids each."""
    if isinstance(examples[0], TaggedExample):
        return data.tag_ids(examples, labels, file)
    return data.label_ids(examples, labels, file) if labels else data.scores(examples, file)


def _ids(values: list[Any]) -> set[int]:
    """All label ids among the targets."""
    return {label for value in values for label in (value if isinstance(value, list) else [value])}


def _rows(examples: list[Any], labels: tuple[str, ...], tokenizer: Tokenizer) -> Rows:
    values = label_values(examples, labels, "training data")
    return encode([example.row for example in examples], values, tokenizer)


def _unlabelled(config: TrainingConfig, model: ExitModel) -> list[Example]:
    """The rows of `config.unlabelled`. ConfigError where the system has no use for them."""
    if config.unlabelled is None:
        return []
    if all(phase.labelled for phase in model.phases()):
        raise ConfigError(
            f"unlabelled is {config.unlabelled!r}; system {config.system!r} learns from labelled rows only"
        )
    columns: dict[str, Any] = {"text": config.text_column, "pair": config.pair_column, "label": config.label_column}
    return data.read(data.locate(config.unlabelled, "train"), **columns, labelled=False)
