"""Training with transformers' Trainer: its loop, logging, progress bar, resuming, seeds and mixed precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset

from .. import destination
from ..errors import ConfigError, TrainingError
from ..folder import Folder
from ..messages import tell
from ..saving import explain
from ..storage import StoredTensors, read_header
from . import states
from .averaging import Average
from .rows import Order, Rows

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .model import ExitModel


def fit(
    model: nn.Module,
    recipe: ExitModel,
    rows: Dataset[dict[str, Any]],
    config: TrainingConfig,
    collator: Callable[[Any], Any],
    inputs: dict[str, str],
    unlabelled: Rows | None = None,
) -> None:
    """Train `model` in place through all phases of `recipe`, which is the model itself or a part of it.

    State to resume from is kept in `.NAME.trainer` beside `config.output`, and in `.NAME.trainer-2` and so on for later
    phases, until `remove_state` is called. inputs: hashes of the data and the model. unlabelled: further rows, for
    phases without labels. On a CPU a run that was killed at any moment ends, once resumed, with the same weights as one
    that was not.
    """
    phases = recipe.phases()
    for number, phase in enumerate(phases):
        if len(phases) > 1:
            tell(f"phase {number + 1} of {len(phases)}: {phase.name}")
        recipe.phase = phase
        for name, parameter in recipe.named_parameters():
            parameter.requires_grad_(phase.trains(name))
        if not any(parameter.requires_grad for parameter in recipe.parameters()):
            raise ConfigError(f"phase {phase.name!r} of {type(recipe).__name__} trains no parameter")
        part = rows if phase.labelled or not isinstance(rows, Rows) else rows.without_labels(unlabelled)
        _fit_phase(model, recipe, part, config, collator, inputs, number)


def _fit_phase(
    model: nn.Module,
    recipe: ExitModel,
    rows: Dataset[dict[str, Any]],
    config: TrainingConfig,
    collator: Callable[[Any], Any],
    inputs: dict[str, str],
    number: int,
) -> None:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):  # transformers is imported where it is used
        """Says where the run is, keeps what is fixed, logs, stops at a loss that is not finite, marks saved states."""

        saving = False
        fixed: tuple[tuple[Tensor, Tensor], ...] = ()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.fixed = tuple((part, part.detach().clone()) for part in recipe.fixed())

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            order.epoch = state.global_step // len(kwargs["train_dataloader"])

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recipe.step = state.global_step
            recipe.epoch_step = state.global_step % len(kwargs["train_dataloader"])
            recipe.freezing.progress = state.global_step / max(1, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                for part, value in self.fixed:
                    part.copy_(value)
            if average is not None:
                average.update(state.global_step, state.max_steps)
            self.saving = control.should_save

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                if average is not None:
                    average.save(directory / f"{states.WRITTEN}{state.global_step}")
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
                    f"written: lower learning_rate ({learning_rate:g}), or train with precision 'fp32'"
                )

    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Order:
            return order

        def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
            optimizer = super().create_optimizer(*arguments, **options)
            _set_rates(optimizer, recipe)
            return optimizer

        def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
            inputs = self._prepare_inputs(inputs)
            recipe.before_step(inputs)
            return super().training_step(model, inputs, *arguments, **options)

    terminal, phase = sys.stderr.isatty(), recipe.phase
    directory = _directory(config, number)
    options = config.flat()
    learning_rate = options["learning_rate"] if phase.learning_rate is None else phase.learning_rate
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=options["epochs"] if phase.epochs is None else phase.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=learning_rate,
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
        ddp_find_unused_parameters=config.freezing != "none" or len(recipe.phases()) > 1,
        disable_tqdm=not terminal,
    )
    lengths = [row["length"] for row in rows.rows] if isinstance(rows, Rows) else None
    order = Order(len(rows), lengths, arguments.train_batch_size, config.seed)  # type: ignore[arg-type]
    watch, average = Watch(), Average(recipe, options["averaging"]) if options["averaging"] else None
    with states.opened(directory, asdict(config) | {"save_every": None}, inputs) as last:
        if average is not None and last is not None:
            average.load(last)
        if last is not None and states.is_last(last):
            model.load_state_dict(StoredTensors(last, read_header(Folder(last).open("model.safetensors"))))
        else:
            if last is None:
                recipe.begin_phase()
            trainer = OrderedTrainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[watch])
            trainer.remove_callback(PrinterCallback)  # it prints to standard output, which is for results
            try:
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
            except (OSError, RuntimeError, SafetensorError) as error:  # torch's for a full disk is a RuntimeError
                if isinstance(error, TrainingError):  # nothing to resume from
                    remove_state(config, recipe)
                if not watch.saving or isinstance(error, TrainingError):
                    raise
                reason = explain(states.reason(directory, error))
                raise TrainingError(
                    f"the run's state cannot be written to {directory}: {reason}; started again with the same options, "
                    "the run resumes from its last saved state"
                ) from error
    if average is not None:
        average.take()
    model.eval()
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        remove_state(config, recipe)
        raise TrainingError(
            f"'{broken[0]}' holds numbers that are not finite; nothing was written: lower learning_rate"
        )


def remove_state(config: TrainingConfig, recipe: ExitModel) -> None:
    """Remove the state of a run: its checkpoint is in place, or there is nothing to resume from."""
    for number in reversed(range(len(recipe.phases()))):  # a later phase is resumed only after the ones before it
        states.remove(_directory(config, number))


def _directory(config: TrainingConfig, number: int) -> Path:
    """Where the state of a phase is kept."""
    return destination.work_directory(config.output, f"trainer-{number + 1}" if number else "trainer")


def _set_rates(optimizer: torch.optim.Optimizer, recipe: ExitModel) -> None:
    """Move parameters with a learning rate of their own to groups of their own, without weight decay."""
    rates, parameters = recipe.rates(), dict(recipe.named_parameters())
    own = {id(parameters[name]) for name in rates}
    for group in optimizer.param_groups:
        group["params"] = [each for each in group["params"] if id(each) not in own]
    for name, rate in rates.items():
        if parameters[name].requires_grad:
            optimizer.add_param_group({"params": [parameters[name]], "lr": rate, "weight_decay": 0.0})
