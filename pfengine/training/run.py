"""One training run: data, Trainer, checkpoint, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoint, data, families, reader, saving, tasks, weights
from ..config import BackboneConfig, parse_backbone
from ..convert.source import find
from ..data import Example
from ..errors import CheckpointError, ConfigError
from ..folder import Folder
from ..manifest import Manifest
from ..messages import warn
from ..tokenization import Tokenizer
from .config import TrainingConfig
from .criterion import add_calibration, check_criterion
from .fit import Collator, Rows, encode, fit, remove_state
from .freezing import Freezing
from .resume import hash_files, hash_rows
from .systems import SYSTEMS


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
    saving.check_writable(config.output)
    source = Path(config.model)
    file = data.locate(config.data, "train")
    name = data.display_name(file)
    columns: dict[str, Any] = {"text": config.text_column, "pair": config.pair_column, "label": config.label_column}
    examples = data.read(file, **columns, kind=config.data_format, labelled=True, max_rows=config.max_rows)
    labels = config.labels or _labels(examples, config.data, name)
    label_values(examples, labels, name)  # so that an error names the row of a wrong one
    if config.held_out is not None:
        kept, held_out = examples, data.read(config.held_out, **columns, labelled=True)
    else:
        kept, held_out = data.split_off(examples, config.hold_out, config.seed, name)
    values = np.array(label_values(held_out, labels, config.held_out or name))
    if not labels and len(set(values)) < 2:
        raise ConfigError(
            f"all {len(held_out)} held-out rows have the same score, so there is no correlation; hold out more rows"
        )
    unseen = set(values) - set(label_values(kept, labels, name)) if labels else set()
    if unseen:
        warn(f"no row with the label {labels[min(unseen)]!r} is left to train on")

    set_seed(config.seed)
    backbone_config = _backbone_config(source, labels, config.layers)
    backbone = _backbone(source, backbone_config)
    files = checkpoint.tokenizer_files(source)
    tokenizer = Tokenizer(files, backbone_config, min(config.max_length, backbone_config.max_tokens), path=source)
    system, head = SYSTEMS[config.system], config.head(backbone_config.family.shares_pooler)
    criterion = config.criterion or (system.criterion if labels else "never")
    check_criterion(criterion, head, backbone_config)
    if config.freezing == "lower" and config.frozen_layers > backbone_config.num_layers:
        raise ConfigError(
            f"frozen_layers is {config.frozen_layers}; the encoder has {backbone_config.num_layers} layers"
        )
    freezing = Freezing(config.freezing, config.frozen_layers)
    if config.freezing == "layers" and backbone_config.family.shares_layers:
        raise ConfigError("freezing 'layers' needs layers with parameters of their own; ALBERT's share theirs")
    model = system.recipe(
        backbone, backbone_config, head, dropout=config.dropout, freezing=freezing, options=asdict(config)
    )
    inputs = {"data": hash_rows(kept, held_out, labels), "model": hash_files(source)}
    fit(model, _rows(kept, labels, tokenizer), config, Collator(backbone_config), inputs)

    manifest = Manifest(
        system=config.system,
        head=head,
        criterion=criterion,
        exit_layers=model.exit_layers,
        storage=config.storage,
        training=config.record() | {"rows": len(kept), "held_out_rows": len(held_out)},
    )
    with saving.replacing(config.output) as stage:
        saving.fill(stage, backbone_config.raw, manifest, model.checkpoint_tensors(), files)
        add_calibration(stage, [e.row for e in held_out], values, config.speedup, tokenizer.max_length)
    remove_state(config)
    return Path(config.output)


def _backbone(source: Path, config: BackboneConfig) -> torch.nn.Module:
    """transformers' encoder, fp32, with the weights of a pretrained one or of a checkpoint of ours."""
    from transformers import AutoConfig, AutoModel

    folder = Folder(source)
    if folder.has(checkpoint.MANIFEST):
        tensors: Mapping[str, torch.Tensor] = reader.read(folder).tensors
    else:  # heads, poolers and layers above the k-th are not read
        tensors = weights.match(folder, find(folder), config.encoder_shapes(), config, extra="ignore")
    settings = {key: value for key, value in config.raw.items() if key != "auto_map"}
    try:
        with torch.random.fork_rng(devices=[]):  # so that it does not change how heads are initialised
            backbone: torch.nn.Module = AutoModel.from_config(
                AutoConfig.for_model(**settings), trust_remote_code=False, dtype=torch.float32
            )
    except Exception as error:  # transformers checks fields that pfengine does not read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            source, [f"{checkpoint.CONFIG}: transformers cannot build an encoder from it: {reason}"]
        ) from None
    backbone.pooler = None  # type: ignore[assignment]  # heads have their own; not all families can do without it
    backbone.load_state_dict({key: tensors[config.family.prefix + key] for key in backbone.state_dict()})
    folder.check()
    return backbone


def _labels(examples: list[Example], source: str, file: str) -> tuple[str, ...]:
    """Label names in id order: the GLUE task's where they fit, else those in the data; none for regression."""
    found = sorted({example.label for example in examples if example.label is not None})
    task = tasks.find(source)
    if task is not None and (task.regression or data.read_as(found, task.labels) is not None):
        return task.labels
    names = data.names_of(found)
    if len(names) == 1:
        raise ConfigError(f"{file}: all {len(examples)} rows have the label {names[0]!r}; a classifier needs two")
    return names


def label_values(examples: list[Example], labels: tuple[str, ...], file: str) -> list[Any]:
    """The targets of the loss: label ids, or numbers for regression."""
    return data.label_ids(examples, labels, file) if labels else data.scores(examples, file)


def _backbone_config(source: Path, labels: tuple[str, ...], layers: int | None) -> BackboneConfig:
    raw = checkpoint.read_config(Folder(source))
    if not isinstance(raw, dict):
        raise CheckpointError(source, [f"{checkpoint.CONFIG}: is not a JSON object"])
    family = families.find_family(raw.get("model_type"))
    names = labels or ("LABEL_0",)
    raw |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels else "regression",
    }
    for key in ("num_labels", "torch_dtype", "dtype", "_name_or_path", "architectures", "transformers_version"):
        raw.pop(key, None)
    if layers is not None and family is not None:
        given = raw.get(key := family.key("num_hidden_layers"))
        if isinstance(given, int) and layers > given:
            raise ConfigError(f"layers is {layers}; {source} has {given}")
        raw[key] = layers
    faults: list[str] = []
    config = parse_backbone(raw, faults)
    if config is None or faults:
        raise CheckpointError(source, faults)
    return config


def _rows(examples: list[Example], labels: tuple[str, ...], tokenizer: Tokenizer) -> Rows:
    values = label_values(examples, labels, "training data")
    return encode([example.row for example in examples], values, tokenizer)
