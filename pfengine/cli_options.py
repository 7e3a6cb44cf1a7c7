"""Options that several commands share, and commands whose options come from elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer
from typer.core import TyperCommand

from .errors import ConfigError
from .training.config import OPTIONS

Function = TypeVar("Function", bound=Callable[..., None])

Checkpoint = Annotated[str, typer.Argument(help="Checkpoint directory, or the name of a bundled one (sst2).")]
Threshold = Annotated[float | None, typer.Option(help="Threshold of the checkpoint's criterion.")]
Speedup = Annotated[float | None, typer.Option(help="Layer speed-up to look up in the calibration table.")]
Device = Annotated[str, typer.Option(help="auto (the CPU), cpu, cuda or cuda:1.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, int8 or fp16 (GPU).")]
MaxLength = Annotated[int | None, typer.Option(help="Longest row in tokens; longer rows are truncated.")]
BatchTokens = Annotated[int, typer.Option(help="Most tokens that go through a layer together.")]
Format = Annotated[str, typer.Option("--format", help=OPTIONS["data_format"].help)]
TextColumn = Annotated[str | None, typer.Option(help=OPTIONS["text_column"].help)]
PairColumn = Annotated[str | None, typer.Option(help=OPTIONS["pair_column"].help)]
LabelColumn = Annotated[str | None, typer.Option(help=OPTIONS["label_column"].help)]
UnusedLabelColumn = Annotated[str | None, typer.Option(help="Column of the label, which is not read as text.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]


class Command(TyperCommand):
    """Refuses empty values, except texts: an unset variable would mean the current directory, or no option."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            if value == "" or (isinstance(value, list) and "" in value and name != "texts"):
                raise ConfigError(f"{name} is empty; give one, or leave it out where it has a default")
        return super().invoke(ctx)


def with_options(parameters: Iterable[inspect.Parameter]) -> Callable[[Function], Function]:
    """Give a function of keyword arguments these parameters on the command line."""

    def decorate(function: Function) -> Function:
        function.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]  # read by typer
        return function

    return decorate


def training_option(name: str, default: Any, kind: Any, help: str | None = None) -> inspect.Parameter:
    """An option of `TrainingConfig` as a parameter; without a default it is an argument."""
    help = OPTIONS[name].help if help is None else help
    if default is inspect.Parameter.empty:
        info: Any = typer.Argument(help=help)
    else:
        info = typer.Option("--format", help=help) if name == "data_format" else typer.Option(help=help)
    annotation: Any = Annotated[_typed_as(kind), info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typed_as(kind: Any) -> Any:
    """The type of a value as it is given on the command line: choices and lists of names are text there."""
    if get_origin(kind) is Literal:
        return str
    return str | None if kind == tuple[str, ...] | None else kind


def numbers(text: str | None, option: str) -> list[float]:
    """Numbers separated by commas; ConfigError names the option."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; it must be numbers separated by commas") from None
