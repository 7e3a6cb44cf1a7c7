"""The command that compares systems: `pfengine compare`, whose other options are those of `TrainingConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from . import cli_io, cli_output, console
from .cli_options import numbers, training_option, with_options
from .errors import ConfigError
from .training.config import DEFAULTS, OF_ONE_RUN, OPTIONS, TYPES

TRAINING = {"precision": "Of training: fp32 or bf16.", "batch_size": None}  # have "training_" before them; their help


def _shared() -> Iterator[inspect.Parameter]:
    for name in OPTIONS:
        if name not in OF_ONE_RUN:
            option = training_option(name, DEFAULTS[name], TYPES[name], TRAINING.get(name))
            yield option.replace(name=f"training_{name}") if name in TRAINING else option


def _parameters() -> list[inspect.Parameter]:
    def option(name: str, kind: Any, default: Any, help: str) -> inspect.Parameter:
        info = typer.Argument(help=help) if default is inspect.Parameter.empty else typer.Option(help=help)
        annotation: Any = Annotated[kind, info]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    needed: Any = inspect.Parameter.empty
    return [
        option("model", str, needed, "Pretrained encoder in Hugging Face layout."),
        option("data", str, needed, "A directory with a train and a dev split, or a GLUE task's name."),
        option("output", str, needed, "Directory for all that is made; an interrupted comparison goes on there."),
        option("contestant", list[str] | None, None,
               "A system, with options as in linear:reads=mean; half, third, student; 'linear on student'; or a "
               "checkpoint's directory. May be repeated."),
        option("seeds", str, "0", "Seeds, separated by commas; each contestant is trained with all of them."),
        option("speedups", str, "1.5,2,3,4", "Layer speed-ups, separated by commas."),
        option("test", str | None, None, "File with the rows that are reported; default: the dev split of the data."),
        option("report", str | None, None, "Folder for JSON, Markdown and pictures; default: the output."),
        option("device", str, "auto", "Of the measurement: auto (the CPU), cpu, cuda or cuda:1."),
        option("precision", str, "auto", "Of the measurement: auto, fp32, bf16, int8 or fp16 (GPU)."),
        option("batch_size", int, 32, "Rows per batch in the measurement."),
        option("repeats", int, 5, "Timed runs of each setting, interleaved with the full model's."),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False,
                          annotation=Annotated[bool, typer.Option("--json", help="JSON on standard output.")]),
        *_shared(),
    ]  # fmt: skip


@with_options(_parameters())
def compare(
    *,
    model: str,
    data: str,
    output: str,
    contestant: list[str] | None,
    seeds: str,
    speedups: str,
    report: str | None,
    as_json: bool,
    labels: str | None,
    **given: Any,
) -> None:
    """Train several systems alike, and show quality against layer speed-up and against time, side by side.

    Without --contestant: pfengine, past-future, linear, models of half and a third of the layers, and a distilled
    student. The full model is always there. Started again with the same options, it makes only what is missing.
    """
    from .comparison import CONTESTANTS
    from .comparison import compare as run
    from .comparison.report import markdown, write

    folder = Path(output if report is None else report)
    cli_io.check_folder(folder, "--report")
    try:
        chosen = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds is {seeds!r}; it must be whole numbers separated by commas") from None
    found = run(
        model, data, output,
        contestants=contestant or CONTESTANTS, seeds=chosen, speedups=numbers(speedups, "--speedups"),
        labels=None if labels is None else cli_io.read_names(labels),
        progress=lambda pairs, total: cli_io.progress(pairs, total, "compare"),
        say=lambda stage: console.say(f"compare: {stage}"), **given,
    )  # fmt: skip
    write(found, folder)
    if as_json:
        cli_output.print_json(found.to_json())
        return
    console.write(markdown(found).rstrip("\n"))
