"""Rows through transformers' Trainer: its loop, logging, progress bar, resuming, seeds and mixed precision."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import ConfigError, InputError, TrainingError
from ..tokenization import Tokenizer
from .freezing import Freezing
from .going_on import go_on_with

if TYPE_CHECKING:
    from .config import TrainingConfig


@dataclass(frozen=True)
class Rows(Dataset[dict[str, Any]]):
    """Tokenised rows with what the loss wants of them: {"input_ids", "types", "length", ["labels"]}."""

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def encode(texts: Sequence[Any], labels: Sequence[Any] | None, tokenizer: Tokenizer) -> Rows:
    """texts: rows as `Engine.classify` takes them; labels: ids or floats, one a row. ConfigError names a bad row."""
    rows = []
    for i, row in enumerate(tokenizer.encode(enumerate(texts))):
        if isinstance(row, InputError):
            raise ConfigError(f"training data, {row}")
        rows.append({"input_ids": row.ids, "types": row.types, "length": len(row.ids)})
        if labels is not None:
            rows[-1]["labels"] = labels[i]
    return Rows(rows)


class Collator:
    """Rows to padded tensors, as transformers' encoders take them."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(row["length"] for row in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64, device="cpu")
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : row["length"]] = torch.from_numpy(row["input_ids"])
            mask[i, : row["length"]] = 1
            if row["types"] is not None:
                types[i, : row["length"]] = torch.from_numpy(row["types"])
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            kind = torch.float32 if isinstance(labels[0], float) else torch.int64
            batch["labels"] = torch.tensor(labels, dtype=kind, device="cpu")
        return batch


def fit(
    model: nn.Module, rows: Dataset[dict[str, Any]], config: TrainingConfig, collator: Callable[[Any], Any]
) -> None:
    """Train `model` in place: an ExitModel, or a part of one with its `freezing`.

    State to go on from is kept beside `config.output` until the run is through.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):  # transformers is imported where it is used
        """Tells freezing and reader how far the run is, and stops a run whose loss is no number."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            freezing.progress = state.global_step / max(1, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not terminal:
                step = f"step {state.global_step} of {state.max_steps}"
                print(f"{step}: loss {float(logs['loss']):.4f}, epoch {float(logs['epoch']):.2f}", file=sys.stderr)
            if not math.isfinite(float(logs["loss"])):
                raise TrainingError(
                    f"the loss is {float(logs['loss'])} at step {state.global_step} of {state.max_steps}; nothing was "
                    f"written: lower learning_rate ({config.learning_rate:g}), or train with precision 'fp32'"
                )

    freezing: Freezing = model.freezing  # type: ignore[assignment]
    terminal = sys.stderr.isatty()
    output = Path(config.output)
    directory = output.parent / f".{output.name}.trainer"
    resume = _resumable(directory, config)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        bf16=config.precision == "bf16",
        use_cpu=not cuda,
        train_sampling_strategy="group_by_length" if isinstance(rows, Rows) else "random",
        length_column_name="length",
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=1,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to=[],
        seed=config.seed,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=config.freezing != "none",
        disable_tqdm=not terminal,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Watch()])
    trainer.remove_callback(PrinterCallback)  # to standard output, which is for results
    trainer.train(resume_from_checkpoint=resume)
    model.eval()
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingError(
            f"'{broken[0]}' holds numbers that are not finite; nothing was written: lower learning_rate"
        )
    shutil.rmtree(directory, ignore_errors=True)


def _resumable(directory: Path, config: TrainingConfig) -> str | None:
    """The last state of an interrupted run with the same configuration; ConfigError where it was another."""
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    if last is None:
        shutil.rmtree(directory, ignore_errors=True)
    go_on_with(directory, asdict(config) | {"save_every": None}, "an interrupted run")
    return last
