"""The command line: `pfengine classify | train | attach | convert | calibrate | evaluate | info | demo`."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from . import cli_io, cli_output, console
from ._version import __version__
from .api import BATCH_TOKENS, load
from .convert import convert as convert_checkpoint
from .errors import ConfigError
from .strict_json import dumps

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[str, typer.Argument(help="Checkpoint directory, or the name of a bundled one (sst2).")]
Threshold = Annotated[float | None, typer.Option(help="Threshold of the checkpoint's criterion.")]
Speedup = Annotated[float | None, typer.Option(help="Layer speed-up to look up in the calibration table.")]
Device = Annotated[str, typer.Option(help="auto (the CPU), cpu, cuda or cuda:1.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, int8 (CPU) or fp16 (GPU).")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
Format = Annotated[
    str, typer.Option("--format", help="auto (by the file's name; else text), text, tsv, csv, jsonl or parquet.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]


class Command(TyperCommand):
    """Takes nothing empty but texts: an unset variable would be the current directory, or no option at all."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            if value == "" or (isinstance(value, list) and "" in value and name != "texts"):
                raise ConfigError(f"{name} is empty; give one, or leave it out where it has a default")
        return super().invoke(ctx)


command = functools.partial(app.command, cls=Command)


def _version(wanted: bool) -> None:
    if wanted:
        console.show(f"pfengine {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Early-exit text classification."""


@command(epilog="Example: pfengine classify sst2 'a charming journey' --speedup 2")
def classify(
    checkpoint: Checkpoint,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: read --file or standard input.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="Text (a row a line), or .tsv, .csv, .jsonl, .parquet, compressed or not; - is standard input."
        ),
    ] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label, which is no text.")] = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    criterion: Annotated[str | None, typer.Option(help="Such as entropy:0.3 or never.")] = None,
    top_k: Annotated[int, typer.Option(help="Labels a row; 0 for all.")] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens that go through a layer together.")] = BATCH_TOKENS,
    as_json: Json = False,
) -> None:
    """Classify texts: label, score and exit layer of each, in input order.

    A row that cannot be classified gets an error in its place; the exit code is then 1.
    """
    if texts == ["-"] and file is None:
        texts, file = None, "-"
    given = [file, text_column, pair_column, label_column]
    if texts and (input_format != "auto" or any(option is not None for option in given)):
        raise ConfigError("give texts, or --file with its format and columns, not both")
    if top_k < 0:
        raise ConfigError(f"--top-k is {top_k}; it must be at least 0")
    shown: deque[Any] = deque()  # rows read ahead of their answers: a few token budgets at most
    source: contextlib.AbstractContextManager[Iterable[Any]]
    if texts:
        source = contextlib.nullcontext([cli_io.argument(text) for text in texts])
    else:
        source = cli_io.open_rows(file, input_format, text_column, pair_column, label_column)
    engine = load(
        checkpoint,
        device=device,
        precision=precision,
        criterion=criterion,
        threshold=threshold,
        speedup=speedup,
        max_length=max_length,
    )
    failed = total = 0
    with cli_io.reading(source, file, shown) as rows:
        results = engine.stream(rows, top_k=top_k or None, on_error="return", batch_tokens=batch_tokens)
        for result in cli_io.progress(results, None, "classify", quiet=sys.stdout.isatty()):
            total += 1
            failed += isinstance(result, dict) and "error" in result
            cli_output.print_result(shown.popleft(), result, as_json)
    if failed:
        console.say(f"error: {failed} of {total} rows could not be classified")
        raise typer.Exit(1)


@command(epilog="Example: pfengine convert official/ ckpt/; or pfengine convert ckpt/ small/ --precision int8")
def convert(
    source: Annotated[str, typer.Argument(help="Directory with config.json and the official weights.")],
    out: Annotated[str, typer.Argument(help="Directory to write.")],
    system: Annotated[str, typer.Option(help="auto or past-future.")] = "auto",
    precision: Annotated[str, typer.Option(help="What the weights are kept in: fp32 or int8.")] = "fp32",
) -> None:
    """Convert an official research checkpoint to ours, or keep one of ours in another precision."""
    console.show(convert_checkpoint(source, out, system=system, precision=precision))


@command(epilog="Example: pfengine train encoder/ SST-2/ ckpt/ --labels negative,positive --storage int8-rows")
def train(
    model: Annotated[str, typer.Argument(help="Pretrained encoder in Hugging Face layout, or a checkpoint.")],
    data: Annotated[str, typer.Argument(help="A directory with a train split, a file, or a GLUE task's name.")],
    output: Annotated[str, typer.Argument(help="Checkpoint directory to write.")],
    system: Annotated[
        str, typer.Option(help="past-future, linear (a classifier a layer) or full-model.")
    ] = "past-future",
    form: Annotated[str, typer.Option(help="paper (its equations) or authors (their code).")] = "paper",
    pooler: Annotated[str | None, typer.Option(help="none, per-layer or shared.")] = None,
    learner: Annotated[str | None, typer.Option(help="linear or tanh.")] = None,
    incorporate: Annotated[
        str | None,
        typer.Option(help="concat, concat-shared, max, avg, attention, lstm; ensemble and vote have no future."),
    ] = None,
    states: Annotated[str | None, typer.Option(help="past-future, past or future.")] = None,
    gate: Annotated[str | None, typer.Option(help="row, label or none.")] = None,
    layers: Annotated[int | None, typer.Option(help="Only the first layers of the encoder.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label names in id order, with commas; or a file with one name a line.")
    ] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    epochs: float = 3.0,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    weight_decay: float = 0.0,
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.06,
    max_length: int = 128,
    dropout: float = 0.1,
    freezing: Annotated[str, typer.Option(help="none, layers (paper) or lower (authors).")] = "none",
    frozen_layers: Annotated[int, typer.Option(help="Lowest layers that 'lower' freezes.")] = 2,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    seed: int = 0,
    held_out: Annotated[str | None, typer.Option(help="File with rows to calibrate thresholds on.")] = None,
    hold_out: Annotated[int, typer.Option(help="Without one: rows kept from training for that.")] = 1000,
    max_rows: Annotated[int | None, typer.Option(help="Use only the first rows.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between states an interrupted run goes on from.")] = 500,
    storage: Annotated[str, typer.Option(help="float or int8-rows.")] = "float",
    speedup: Annotated[float, typer.Option(help="Layer speed-up it runs at unless told otherwise.")] = 2.0,
    grid: Annotated[
        bool, typer.Option("--grid", help="The paper's grid of batch sizes and learning rates; the best is kept.")
    ] = False,
) -> None:
    """Train a model with early exits and write a calibrated checkpoint.

    An interrupted run goes on where it last saved when it is started again with the same options.
    """
    from .training import TrainingConfig
    from .training import train as run

    names = cli_io.read_names(labels) if labels is not None else None
    config = TrainingConfig(
        model, data, output, system=cast(Any, system), form=cast(Any, form), pooler=pooler, learner=learner,
        incorporate=incorporate, states=states, gate=gate, layers=layers, labels=names, data_format=input_format,
        text_column=text_column, pair_column=pair_column, label_column=label_column, epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay, warmup=warmup,
        max_length=max_length, dropout=dropout,
        freezing=cast(Any, freezing), frozen_layers=frozen_layers, precision=precision, seed=seed, held_out=held_out,
        hold_out=hold_out, max_rows=max_rows, save_every=save_every, storage=storage, speedup=speedup,
    )  # fmt: skip
    if not grid:
        console.show(run(config))
        return
    from .training.grid import search

    best, cells = search(config)
    cli_output.print_json({"output": str(best), "grid": cells})


@command(epilog="Example: pfengine attach my-model/ texts.jsonl ckpt/")
def attach(
    model: Annotated[str, typer.Argument(help="Fine-tuned sequence-classification directory of Hugging Face.")],
    data: Annotated[str, typer.Argument(help="Texts, labelled or not: a file, or a directory with a train split.")],
    output: Annotated[str, typer.Argument(help="Checkpoint directory to write.")],
    system: Annotated[str, typer.Option(help="past-future or linear.")] = "past-future",
    form: Annotated[str, typer.Option(help="authors or paper.")] = "authors",
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label, which is no text.")] = None,
    epochs: float = 5.0,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    dropout: float = 0.1,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    hold_out: Annotated[
        int, typer.Option(help="Rows the exits are not trained on, to calibrate thresholds on.")
    ] = 1000,
    max_rows: Annotated[int, typer.Option(help="Use only the first rows.")] = 50_000,
    seed: int = 0,
    speedup: Annotated[float, typer.Option(help="Layer speed-up it runs at unless told otherwise.")] = 2.0,
) -> None:
    """Give a model one already has exits, from unlabelled text; its full depth answers as before, bit for bit."""
    from .training import attach as run

    console.show(
        run(
            model, data, output, system=system, form=form, data_format=input_format, text_column=text_column,
            pair_column=pair_column, label_column=label_column,
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, dropout=dropout, max_length=max_length,
            hold_out=hold_out, max_rows=max_rows, seed=seed, speedup=speedup,
            progress=lambda parts, total: cli_io.progress(parts, total, "full model"),
        )
    )  # fmt: skip


@command(epilog="Example: pfengine calibrate ckpt/ held-out.tsv --agreement 0.99 --confidence 0.95")
def calibrate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Argument(help="Rows it was not trained on: a file, or a directory with a dev split.")],
    criterion: Annotated[str | None, typer.Option(help="Another criterion by name: entropy, patience.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Layer speed-up it is to run at.")] = None,
    agreement: Annotated[float | None, typer.Option(help="Share of rows answered as at full depth.")] = None,
    accuracy_drop: Annotated[float | None, typer.Option(help="Largest loss of accuracy; needs labels.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the promise that agreement or accuracy-drop makes.")] = 0.95,
    choose_layers: Annotated[
        bool, typer.Option("--choose-layers", help="Test only the exits that save time, at equal agreement.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Write a calibrated copy there; default: in place.")] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Find thresholds on held-out rows and write them into the checkpoint.

    With --agreement or --accuracy-drop the threshold comes with a guarantee; too few rows for it: exit code 1.
    """
    from .evaluation import calibrate as run

    outcome = run(
        checkpoint, data, criterion=criterion, speedup=speedup, agreement=agreement, accuracy_drop=accuracy_drop,
        confidence=confidence, choose_layers=choose_layers, out=out, data_format=input_format,
        text_column=text_column, pair_column=pair_column, label_column=label_column,
        notify=lambda stage: console.say(f"calibrate: {stage}"),
    )  # fmt: skip
    if as_json:
        cli_output.print_json(outcome.to_json())
    else:
        cli_output.print_calibration(outcome)


@command(epilog="Example: pfengine evaluate sst2 SST-2/dev.tsv --speedups 1.5,2,3")
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Argument(help="Labelled rows: a file, a directory with a dev split, or a GLUE task.")],
    thresholds: Annotated[str | None, typer.Option(help="Thresholds, with commas.")] = None,
    speedups: Annotated[str | None, typer.Option(help="Calibrated layer speed-ups, with commas.")] = None,
    compare: Annotated[list[str] | None, typer.Option(help="Another checkpoint in the same run; repeat it.")] = None,
    metrics: Annotated[str | None, typer.Option(help="accuracy, f1, pearson, spearman; with commas.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_tokens: int = BATCH_TOKENS,
    batch_size: Annotated[int | None, typer.Option(help="Most rows a batch.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    repeats: Annotated[int, typer.Option(help="Timed runs of each setting, in turn.")] = 3,
    out: Annotated[str | None, typer.Option(help="Also write the report to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Also write JSON, Markdown and pictures to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Quality, layer and wall-clock speed-up and exit layers, at full depth and at each threshold."""
    from .evaluation import evaluate as run

    file, folder = out and Path(out), report and Path(report)
    if file:
        cli_io.check_file(file, "--out")
    if folder:
        cli_io.check_folder(folder, "--report")
    found = run(
        checkpoint, data, thresholds=_numbers(thresholds, "--thresholds"), speedups=_numbers(speedups, "--speedups"),
        compare=compare or (), metrics=metrics.split(",") if metrics else (), curves=bool(report or out or as_json),
        device=device, precision=precision, batch_tokens=batch_tokens, batch_size=batch_size, max_length=max_length,
        data_format=input_format, text_column=text_column, pair_column=pair_column, label_column=label_column,
        repeats=repeats,
        progress=lambda runs, total: cli_io.progress(runs, total, "evaluate"),
    )  # fmt: skip
    try:
        if file:
            with console.writing(str(file)):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(dumps(found.to_json(), indent=2) + "\n")
        if folder:
            with console.writing(str(folder)):
                found.write(folder)
    finally:  # what was measured is shown, even where the disk has become full in the meantime
        if as_json:
            cli_output.print_json(found.to_json())
        else:
            cli_output.print_report(found)


@command(epilog="Example: pfengine info sst2")
def info(checkpoint: Checkpoint, as_json: Json = False) -> None:
    """What a checkpoint is and holds, and what this installation runs it on."""
    started = time.perf_counter()
    engine = load(checkpoint, criterion="never")
    seconds = time.perf_counter() - started
    facts = cli_output.facts_of(engine, seconds)
    if as_json:
        cli_output.print_json(facts)
    else:
        cli_output.print_facts(facts)


@command(epilog="Example: pfengine demo")
def demo(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint with the labels negative and positive.")] = "sst2",
    speedup: Speedup = None,
    as_json: Json = False,
) -> None:
    """Classify real sentences with the bundled checkpoint, and time it against full depth."""
    from .demo import run

    outcome = run(checkpoint, speedup)
    if as_json:
        cli_output.print_json(asdict(outcome))
    else:
        cli_output.print_demo(outcome)


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; it must be numbers with commas between") from None


def main() -> None:
    """As `__main__.main`, for those who have imported this module already."""
    console.run(lambda: app)
