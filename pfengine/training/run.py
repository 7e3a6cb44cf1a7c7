"""One training run: data, Trainer, checkpoint, calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import checkpoint, data
from ..api import load
from ..config import BackboneConfig, EngineConfig, parse_backbone
from ..data import Example
from ..errors import CheckpointError, ConfigError, InputError
from ..exits.calibration import entropy_table
from ..tokenization import Tokenizer
from .config import TrainingConfig
from .past_future import PastFutureModel


def train(config: TrainingConfig) -> Path:
    """Train, write the checkpoint to `config.output`, calibrate its thresholds on the held-out rows. Returns the path.

    Raises ConfigError or CheckpointError before any training where data, model or options do not fit.
    """
    try:
        from transformers import AutoModel, set_seed
    except ImportError:
        raise ConfigError("training needs transformers: pip install 'pfengine[train]'") from None
    source = Path(config.model)
    examples = data.read(data.find_split(Path(config.data), "train") if Path(config.data).is_dir() else config.data)
    if config.max_rows is not None:
        examples = examples[: config.max_rows]
    labels = config.labels or tuple(sorted({example.label or "" for example in examples}))
    data.label_ids(examples, labels, config.data)
    kept, held_out = data.hold_out(examples, config.hold_out, config.seed)
    if not kept:
        raise ConfigError(
            f"{config.data} has {len(examples)} rows; holding out {config.hold_out} leaves none to train on"
        )

    set_seed(config.seed)
    backbone_config = _backbone_config(source, labels)
    extra = {"add_pooling_layer": False, "dtype": torch.float32, "local_files_only": True}
    backbone = AutoModel.from_pretrained(source, **extra)
    tokenizer = Tokenizer(source, backbone_config, min(config.max_length, backbone_config.max_tokens))
    head = {"type": "past-future", "pooler": "shared" if backbone_config.family.factorised else "per-layer"}
    model = PastFutureModel(backbone, backbone_config, head, config.dropout)
    _fit(model, _encode(kept, labels, tokenizer), config)

    engine = EngineConfig(
        system=config.system,
        head=head,
        criterion="entropy",
        exit_layers=tuple(range(1, backbone_config.num_layers + 1)),
        storage=config.storage,
        training=config.record() | {"rows": len(kept), "held_out_rows": len(held_out)},
    )
    tensors = model.checkpoint_tensors()
    checkpoint.write(config.output, backbone_config.raw, engine, tensors, source)
    # Calibrated on what was stored, which rounding to int8 may have changed.
    trained = load(config.output, criterion="never")
    logits = trained.layer_logits(example.row for example in held_out)
    table = entropy_table(logits, np.array(data.label_ids(held_out, labels, config.data)), trained.exit_layers)
    nearest = min(table, key=lambda point: abs(point["layer_speedup"] - config.speedup), default=None)
    engine = replace(engine, calibration=tuple(table), threshold=nearest["threshold"] if nearest else None)
    return checkpoint.write(config.output, backbone_config.raw, engine, tensors, source)


def _backbone_config(source: Path, labels: tuple[str, ...]) -> BackboneConfig:
    try:
        raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(source, [f"config.json cannot be read: {error}"]) from None
    names = tuple(f"LABEL_{name}" if name.isdigit() else name for name in labels)
    raw |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    for key in ("num_labels", "torch_dtype", "dtype", "_name_or_path", "architectures"):
        raw.pop(key, None)
    faults: list[str] = []
    config = parse_backbone(raw, faults)
    if config is None or faults:
        raise CheckpointError(source, faults)
    return config


class _Rows(Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def _encode(examples: list[Example], labels: tuple[str, ...], tokenizer: Tokenizer) -> _Rows:
    rows = []
    ids = data.label_ids(examples, labels, "training data")
    for row, label in zip(tokenizer.encode(enumerate(e.row for e in examples)), ids, strict=True):
        if isinstance(row, InputError):
            raise ConfigError(f"training data, {row}")
        rows.append({"input_ids": row.ids, "types": row.types, "labels": label, "length": len(row.ids)})
    return _Rows(rows)


class _Collator:
    """Rows to padded tensors, as transformers' encoders take them."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.from_numpy(row["input_ids"])
            mask[i, :length] = 1
            if row["types"] is not None:
                types[i, :length] = torch.from_numpy(row["types"])
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}


def _fit(model: PastFutureModel, rows: _Rows, config: TrainingConfig) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(Path(config.output).parent / f".{Path(config.output).name}.trainer"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        seed=config.seed,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=_Collator(model.backbone_config.pad_token_id))
    trainer.train()
    model.eval()
