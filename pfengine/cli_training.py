"""The commands that train: `pfengine train | attach`, whose options are those of `TrainingConfig` and `attach`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_type_hints

import typer

from . import cli_io, cli_output, console, training
from .cli_options import training_option, with_options
from .training.config import DEFAULTS, OPTIONS, TYPES, TrainingConfig

GRID = inspect.Parameter(
    "grid",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--grid", help="The paper's grid of batch sizes and learning rates; the best is kept.")
    ],
)
REQUIRED = ("model", "data", "output")
# What the options of `TrainingConfig` mean to `attach`, where that differs.
ATTACH_HELP = {
    "model": "Fine-tuned sequence-classification directory of Hugging Face.",
    "data": "Texts, labelled or not: a file, or a directory with a train split.",
    "system": "past-future or linear (a classifier after every layer).",
    "label_column": "Column of the label, which is not read as text.",
    "hold_out": "Rows the exits are not trained on, to calibrate thresholds on.",
}


def _train_options() -> list[inspect.Parameter]:
    given = {name: inspect.Parameter.empty if name in REQUIRED else DEFAULTS[name] for name in OPTIONS}
    return [*(training_option(name, default, TYPES[name]) for name, default in given.items()), GRID]


def _attach_options() -> list[inspect.Parameter]:
    types, options = get_type_hints(training.attach), []
    for name, parameter in inspect.signature(training.attach).parameters.items():
        option = "data" if name == "source" else name
        if option in OPTIONS:
            kind = str if option in REQUIRED else types[name]
            options.append(training_option(option, parameter.default, kind, ATTACH_HELP.get(option)))
    return options


@with_options(_train_options())
def train(*, grid: bool, labels: str | None, **given: Any) -> None:
    """Train a model with early exits and write a calibrated checkpoint.

    An interrupted run resumes from its last saved state when it is started again with the same options.
    """
    config = TrainingConfig(**given, labels=None if labels is None else cli_io.read_names(labels))
    if not grid:
        console.show(training.train(config))
        return
    from .training.grid import search

    best, cells = search(config)
    cli_output.print_json({"output": str(best), "grid": cells})


@with_options(_attach_options())
def attach(*, model: str, data: str, output: str, **given: Any) -> None:
    """Add exits to a finished model, from unlabelled text; its full depth answers as before, bit for bit."""

    def progress(parts: Any, total: int) -> Any:
        return cli_io.progress(parts, total, "full model")

    console.show(training.attach(model, data, output, **given, progress=progress))
