"""Training with transformers' Trainer: its loop, logging, progress bar, resuming, seeds and mixed precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from .. import destination
from ..config import BackboneConfig
from ..errors import ConfigError, InputError, TrainingError
from ..folder import Folder
from ..messages import tell
from ..saving import explain
from ..storage import StoredTensors, read_header
from ..tokenization import Tokenizer
from . import states
from .freezing import Freezing

if TYPE_CHECKING:
    from .config import TrainingConfig


@dataclass(frozen=True)
class Rows(Dataset[dict[str, Any]]):
    """Tokenised rows: {"input_ids", "types", "length", ["labels"]}."""

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def encode(texts: Sequence[Any], labels: Sequence[Any] | None, tokenizer: Tokenizer) -> Rows:
    """texts: rows as `Engine.classify` takes them; labels: one id or float per row. ConfigError names a bad row."""
    rows = []
    for i, row in enumerate(tokenizer.encode(enumerate(texts))):
        if isinstance(row, InputError):
            raise ConfigError(f"training data, {row}")
        rows.append({"input_ids": row.ids, "types": row.types, "length": len(row.ids)})
        if labels is not None:
            rows[-1]["labels"] = labels[i]
    return Rows(rows)


class Collator:
    """Rows to padded tensors, as transformers' encoders take them; token types where the model has them."""

    def __init__(self, config: BackboneConfig) -> None:
        self.pad, self.has_types = config.pad_token_id, config.type_vocab_size > 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(row["length"] for row in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64, device="cpu")
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : row["length"]] = torch.from_numpy(row["input_ids"])
            mask[i, : row["length"]] = 1
            if row["types"] is not None:
                types[i, : row["length"]] = torch.from_numpy(row["types"])
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.has_types:
            batch["token_type_ids"] = types
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            kind = torch.float32 if isinstance(labels[0], float) else torch.int64
            batch["labels"] = torch.tensor(labels, dtype=kind, device="cpu")
        return batch


class Order(Sampler[int]):
    """Rows in an order that depends only on the seed and the epoch, so that a resumed run has the same one.

    lengths: of the rows, to batch rows of similar length, as transformers does; None: any order.
    """

    def __init__(self, rows: int, lengths: list[int] | None, batch_size: int, seed: int) -> None:
        self.rows, self.lengths, self.batch_size, self.seed = rows, lengths, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import LengthGroupedSampler

        drawn = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(drawn >> np.uint64(1)))
        if self.lengths is None:
            return iter(torch.randperm(self.rows, generator=generator, dtype=torch.int64, device="cpu").tolist())
        return iter(LengthGroupedSampler(self.batch_size, lengths=self.lengths, generator=generator))


def fit(
    model: nn.Module,
    rows: Dataset[dict[str, Any]],
    config: TrainingConfig,
    collator: Callable[[Any], Any],
    inputs: dict[str, str],
) -> None:
    """Train `model` in place: an ExitModel, or a part of one with its `freezing`.

    State to resume from is kept in `.NAME.trainer` beside `config.output` until `remove_state` is called. inputs:
    hashes of the data and the model. On a CPU a run that was killed at any moment ends, once resumed, with the same
    weights as one that was not.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):  # transformers is imported where it is used
        """Updates freezing and order, logs, stops a run whose loss is not finite, marks saved states as complete."""

        saving = False

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            order.epoch = state.global_step // len(kwargs["train_dataloader"])

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            freezing.progress = state.global_step / max(1, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saving = control.should_save

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                states.complete(directory, state.global_step)
            self.saving = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not terminal:
                step = f"step {state.global_step} of {state.max_steps}"
                tell(f"{step}: loss {float(logs['loss']):.4f}, epoch {float(logs['epoch']):.2f}")
            if not math.isfinite(float(logs["loss"])):
                raise TrainingError(
                    f"the loss is {float(logs['loss'])} at step {state.global_step} of {state.max_steps}; nothing was "
                    f"written: lower learning_rate ({config.learning_rate:g}), or train with precision 'fp32'"
                )

    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Order:
            return order

    freezing: Freezing = model.freezing  # type: ignore[assignment]
    terminal = sys.stderr.isatty()
    directory = destination.work_directory(config.output, "trainer")
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
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=config.save_every,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to=[],
        seed=config.seed,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=config.freezing != "none",
        disable_tqdm=not terminal,
    )
    lengths = [row["length"] for row in rows.rows] if isinstance(rows, Rows) else None
    order = Order(len(rows), lengths, arguments.train_batch_size, config.seed)  # type: ignore[arg-type]
    watch = Watch()
    with states.opened(directory, asdict(config) | {"save_every": None}, inputs) as last:
        if last is not None and states.is_last(last):
            model.load_state_dict(StoredTensors(last, read_header(Folder(last).open("model.safetensors"))))
        else:
            trainer = OrderedTrainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[watch])
            trainer.remove_callback(PrinterCallback)  # it prints to standard output, which is for results
            try:
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
            except (OSError, RuntimeError, SafetensorError) as error:  # torch's for a full disk is a RuntimeError
                if isinstance(error, TrainingError):  # nothing to resume from
                    states.remove(directory)
                if not watch.saving or isinstance(error, TrainingError):
                    raise
                reason = explain(states.reason(directory, error))
                raise TrainingError(
                    f"the run's state cannot be written to {directory}: {reason}; started again with the same options, "
                    "the run resumes from its last saved state"
                ) from error
    model.eval()
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        states.remove(directory)
        raise TrainingError(
            f"'{broken[0]}' holds numbers that are not finite; nothing was written: lower learning_rate"
        )


def remove_state(config: TrainingConfig) -> None:
    """Remove the state of a run whose checkpoint is in place."""
    states.remove(destination.work_directory(config.output, "trainer"))
