"""The commands that train: `pfengine train | attach`, whose options are those of `TrainingConfig` and `attach`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_type_hints

import typer
from typer.main import get_command

from . import cli_io, cli_output, console, training
from .cli_options import Command, training_option, with_options
from .errors import ConfigError
from .training.config import DEFAULTS, OPTIONS, TYPES, TrainingConfig

GRID = inspect.Parameter(
    "grid",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--grid", help="The paper's grid of batch sizes and learning rates; the best is kept.")
    ],
)
CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
REQUIRED = ("model", "data", "output")
# What the options of `TrainingConfig` mean to `attach`, where that differs.
ATTACH_HELP = {
    "model": "Fine-tuned sequence-classification directory of Hugging Face.",
    "data": "Texts, labelled or not: a file, or a directory with a train split.",
    "system": "The system whose exits it gets.",
    "label_column": "Column of the label, which is not read as text.",
    "hold_out": "Rows the exits are not trained on, to calibrate thresholds on.",
}


def _train_options() -> list[inspect.Parameter]:
    given = {name: inspect.Parameter.empty if name in REQUIRED else DEFAULTS[name] for name in OPTIONS}
    return [*(training_option(name, default, TYPES[name]) for name, default in given.items()), GRID, CONTEXT]


TUNE = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
    for name, default, kind, option in (
        ("tune", False, bool, typer.Option("--tune", help="Train for a promise of agreement; see below.")),
        ("agreement", None, float | None, typer.Option(help="With --tune: promised share of rows. [default: 0.99]")),
        ("confidence", None, float | None, typer.Option(help="With --tune: of the promise. [default: 0.95]")),
        (
            "tolerance",
            None,
            float | None,
            typer.Option(help="With --tune, of regression: promised distance from the model's score."),
        ),
        (
            "encoder_rate",
            None,
            float | None,
            typer.Option(help="With --tune: learning rate of the encoder. [default: 0]"),
        ),
        (
            "augment",
            None,
            float | None,
            typer.Option(help="With --tune: rows made of the texts, for each. [default: 3]"),
        ),
        (
            "fallback",
            None,
            bool | None,
            typer.Option(help="With --tune: may unsure rows fall back to the model itself?"),
        ),
        ("as_json", False, bool, typer.Option("--json", help="With --tune: JSON on standard output, for machines.")),
    )
]


def _attach_options() -> list[inspect.Parameter]:
    types, options = get_type_hints(training.attach), [CONTEXT, *TUNE]
    for name, parameter in inspect.signature(training.attach).parameters.items():
        option = "data" if name == "source" else name
        if option in OPTIONS:
            kind = str if option in REQUIRED else types[name]
            options.append(training_option(option, parameter.default, kind, ATTACH_HELP.get(option)))
    return options


class TrainingCommand(Command):
    """A command that takes, beside its own options, those that systems declare: it leaves their texts in `ctx.obj`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Called once the modules of --import are imported."""
        app = typer.Typer(add_completion=False)
        app.command()(with_options(_own_options())(lambda **given: None))
        return [*super().get_params(ctx), *(each for each in get_command(app).params if each.name != "help")]

    def invoke(self, ctx: Any) -> Any:
        ctx.obj = {option.name: ctx.params[option.name] for option in _own_options()}
        if "" not in ctx.obj.values():  # of which it is said that they are empty
            ctx.params = {name: value for name, value in ctx.params.items() if name not in ctx.obj}
        return super().invoke(ctx)


def _own_options() -> list[inspect.Parameter]:
    """Those that systems declare. Several may have one of the same name, each with a meaning of its own."""
    helps: dict[str, list[str]] = {}
    for system in training.SYSTEMS.values():
        for name in [name for name in system.own if name not in OPTIONS]:
            option = system.own[name]
            default = "" if option.default is None else f" [default: {_text(option.default)}]"
            helps.setdefault(name, []).append(f"{system.name}: {option.help}{default}")
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=" ".join(each))],
        )
        for name, each in helps.items()
    ]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parsed(system: str, given: dict[str, str | None]) -> dict[str, Any]:
    """Values of texts; those that this system does not take stay as they are, and are refused."""
    own = training.SYSTEMS[system].own if system in training.SYSTEMS else {}
    texts = {name: text for name, text in given.items() if text is not None}
    return {name: own[name].parse(text) if name in own else text for name, text in texts.items()}


@with_options(_train_options())
def train(*, ctx: typer.Context, grid: bool, labels: str | None, **given: Any) -> None:
    """Train a model with early exits and write a calibrated checkpoint.

    An interrupted run resumes from its last saved state when it is started again with the same options.
    """
    names = None if labels is None else cli_io.read_names(labels)
    config = TrainingConfig(**given, labels=names, options=_parsed(given["system"], ctx.obj))
    if not grid:
        console.show(training.train(config))
        return
    from .training.grid import search

    best, cells = search(config)
    cli_output.print_json({"output": str(best), "grid": cells})


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Is an option on the command line, rather than left at its default?"""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@with_options(_attach_options())
def attach(
    *, ctx: typer.Context, model: str, data: str, output: str, tune: bool, agreement: float | None,
    confidence: float | None, tolerance: float | None, encoder_rate: float | None, augment: float | None,
    fallback: bool | None, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Add exits to a finished model, from unlabelled text; its full depth answers as before, bit for bit.

    With --tune exits that weigh all tokens learn from the texts and from rows made of them, and the encoder too where
    --encoder-rate is given. The fastest precision, exits to test and threshold are chosen that keep a promise on texts
    held out: so many rows are answered as by the model in fp32, or scored within --tolerance of it. Options that are
    not given have the defaults of `pfengine train` then, but the learning rate, 0.001; half of the texts are held out.
    """

    def progress(parts: Any, total: int) -> Any:
        return cli_io.progress(parts, total, "full model")

    own: dict[str, Any] = {
        "agreement": agreement, "confidence": confidence, "tolerance": tolerance, "encoder_rate": encoder_rate,
        "augment": augment, "fallback": fallback,
    }  # fmt: skip
    own = {name: value for name, value in own.items() if value is not None}
    if not tune:
        if own or as_json:
            raise ConfigError(
                f"{next(iter(own), 'json')} is for --tune; for a promise of exits see `pfengine calibrate`"
            )
        options = _parsed(given["system"], ctx.obj)
        console.show(training.attach(model, data, output, **given, options=options, progress=progress))
        return
    told = {name: value for name, value in given.items() if _is_given(ctx, name)}
    told |= {"options": _parsed(told.get("system", DEFAULTS["system"]), ctx.obj)}
    made = training.tune(model, data, output, progress=progress, **told, **own)
    if as_json:
        cli_output.print_json(made.to_json())
    else:
        cli_output.print_tuned(made)
