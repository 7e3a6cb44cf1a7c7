"""The command line: `pfengine classify`, `pfengine tag` and so on, as `COMMANDS` lists them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from . import cli_io, cli_output, console
from ._version import __version__
from .api import BATCH_TOKENS, load
from .cascade_saving import cascade as make_cascade
from .cli_comparison import compare
from .cli_evaluation import calibrate, evaluate
from .cli_export import export
from .cli_options import (
    BatchTokens,
    Checkpoint,
    Command,
    Device,
    Format,
    Json,
    MaxLength,
    PairColumn,
    Precision,
    Speedup,
    TextColumn,
    Threshold,
    UnusedLabelColumn,
)
from .cli_ranking import rank
from .cli_serving import serve
from .cli_tagging import tag
from .cli_training import TrainingCommand, attach, train
from .convert.run import convert as convert_checkpoint
from .convert.run import converters
from .errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.show(f"pfengine {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Python module with heads, criteria or systems of your own."),
    ] = None,
) -> None:
    """Early-exit text classification and tagging."""
    for module in modules or ():
        try:
            importlib.import_module(module)
        except Exception as error:  # it may be anything: the module is the user's
            raise ConfigError(f"--import {module}: {type(error).__name__}: {error}") from error


def classify(
    checkpoint: Checkpoint,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: read --file or standard input.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="Text (one row per line), or .tsv, .csv, .jsonl, .parquet, compressed or not; - is standard input."
        ),
    ] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: UnusedLabelColumn = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    criterion: Annotated[str | None, typer.Option(help="When rows exit, such as entropy:0.3 or never.")] = None,
    top_k: Annotated[int, typer.Option(help="Labels per row; 0 for all.")] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: Json = False,
) -> None:
    """Classify texts: print label, score and exit layer of each, in input order.

    A row that cannot be classified gets an error in its place, and the exit code is 1.
    """
    source, file = cli_io.source_of(texts, file, input_format, text_column, pair_column, label_column)
    if top_k < 0:
        raise ConfigError(f"--top-k is {top_k}; it must be at least 0")
    engine = load(
        checkpoint,
        device=device,
        precision=precision,
        criterion=criterion,
        threshold=threshold,
        speedup=speedup,
        max_length=max_length,
    )

    def answers(rows: Any) -> Any:
        return engine.stream(rows, top_k=top_k or None, on_error="return", batch_tokens=batch_tokens)

    def show(row: Any, result: Any) -> None:
        cli_output.print_result(row, result, as_json)

    cli_io.print_answers(source, file, answers, show, "classify", "classified")


def convert(
    source: Annotated[str, typer.Argument(help="Directory with config.json and the official weights.")],
    out: Annotated[str, typer.Argument(help="Directory to write.")],
    system: Annotated[str, typer.Option(help=f"auto or {', '.join(converters())}.")] = "auto",
    precision: Annotated[str, typer.Option(help="How the weights are stored: fp32 or int8.")] = "fp32",
) -> None:
    """Convert an official research checkpoint to ours, or store one of ours in another precision."""
    console.show(convert_checkpoint(source, out, system=system, precision=precision))


def cascade(
    checkpoints: Annotated[list[str], typer.Argument(help="Two or more checkpoints, the fastest first.")],
    out: Annotated[str, typer.Argument(help="Directory to write.")],
    criterion: Annotated[
        str, typer.Option(help="When a row is answered and does not enter the next model.")
    ] = "cascadebert",
    threshold: Annotated[float | None, typer.Option(help="Its threshold; none: calibrate the cascade.")] = None,
) -> None:
    """Put finished models with the same labels in a cascade: rows that one is not sure of enter the next.

    Without a threshold the last model answers all rows, until `pfengine calibrate` has found one.
    """
    console.show(make_cascade(checkpoints, out, criterion=criterion, threshold=threshold))


def info(checkpoint: Checkpoint, as_json: Json = False) -> None:
    """Show what a checkpoint holds, and what this installation runs it with."""
    started = time.perf_counter()
    engine = load(checkpoint, criterion="never")
    seconds = time.perf_counter() - started
    facts = cli_output.facts_of(engine, seconds)
    if as_json:
        cli_output.print_json(facts)
    else:
        cli_output.print_facts(facts)


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


COMMANDS: dict[Callable[..., None], str] = {  # with an example each, in the order of `pfengine --help`
    classify: "pfengine classify sst2 'a charming journey' --speedup 2",
    tag: "pfengine tag ckpt/ 'Angela Merkel visited Paris.' --json",
    rank: "pfengine rank cross-encoder/ 'how fast is an early exit?' documents.txt --top-k 10",
    convert: "pfengine convert official/ ckpt/; or pfengine convert ckpt/ small/ --precision int8",
    train: "pfengine train encoder/ SST-2/ ckpt/ --labels negative,positive --storage int8-rows",
    attach: "pfengine attach my-model/ texts.jsonl ckpt/",
    calibrate: "pfengine calibrate ckpt/ held-out.tsv --agreement 0.99 --confidence 0.95",
    evaluate: "pfengine evaluate sst2 SST-2/dev.tsv --speedups 1.5,2,3",
    compare: "pfengine compare encoder/ SST-2/ work/ --contestant linear --contestant past-future --contestant half",
    cascade: "pfengine cascade small/ large/ out/; then pfengine calibrate out/ held-out.tsv --speedup 2",
    serve: "pfengine serve sst2 --port 3000",
    export: "pfengine export triton sst2 models/; then tritonserver --model-repository models/",
    info: "pfengine info sst2",
    demo: "pfengine demo",
}
for _function, _example in COMMANDS.items():
    _class = TrainingCommand if _function in (train, attach) else Command
    app.command(cls=_class, epilog=f"Example: {_example}")(_function)


def main() -> None:
    """As `__main__.main`, once this module is imported."""
    console.run(lambda: app)
