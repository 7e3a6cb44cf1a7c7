"""The commands that judge a checkpoint: `pfengine calibrate | evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import cli_io, cli_output, console
from .api import BATCH_TOKENS
from .cli_options import (
    BatchTokens,
    Checkpoint,
    Device,
    Format,
    Json,
    LabelColumn,
    MaxLength,
    PairColumn,
    Precision,
    TextColumn,
    numbers,
)
from .errors import ConfigError
from .strict_json import dumps


def calibrate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Argument(help="Rows it was not trained on: a file, or a directory with a dev split.")],
    criterion: Annotated[str | None, typer.Option(help="Another criterion, such as patience or elbert:,8,0.1.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Layer speed-up to run at from now on.")] = None,
    agreement: Annotated[float | None, typer.Option(help="Guaranteed share of rows answered as at full depth.")] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Guaranteed largest loss of accuracy; needs labels.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Regression: guaranteed largest distance from full depth, of 99% of rows. With --rank: how far from "
            "the last wanted document's score others may stand for it; default 0."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the guarantee.")] = 0.95,
    choose_layers: Annotated[
        bool, typer.Option("--choose-layers", help="Test only the exits that save time, at equal agreement.")
    ] = False,
    rank: Annotated[
        bool,
        typer.Option(
            "--rank", help="For ranking: rows are queries with a document each, and the promise is about the best."
        ),
    ] = False,
    top_k: Annotated[int | None, typer.Option(help="With --rank: how many documents are wanted; default 10.")] = None,
    out: Annotated[str | None, typer.Option(help="Directory for a calibrated copy; default: in place.")] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Find thresholds on held-out rows and write them into the checkpoint.

    With --agreement, --accuracy-drop or, for regression, --tolerance the threshold comes with a guarantee; if there are
    too few rows for it, the exit code is 1. With --rank documents leave early that are surely not among the best
    --top-k of their query: in --agreement of queries (default 0.95) the best are those of full depth.
    """
    from .evaluation import calibrate as run
    from .evaluation import calibrate_ranking

    def notify(stage: str) -> None:
        console.say(f"calibrate: {stage}")

    if rank:
        others = {"--criterion": criterion, "--speedup": speedup, "--accuracy-drop": accuracy_drop,
                  "--choose-layers": choose_layers or None, "--label-column": label_column}  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"--rank does not go with {', '.join(given)}")
        ranked = calibrate_ranking(
            checkpoint, data, top_k=10 if top_k is None else top_k, agreement=0.95 if agreement is None else agreement,
            confidence=confidence, tolerance=tolerance or 0.0, out=out, data_format=input_format,
            text_column=text_column, pair_column=pair_column,
            notify=notify,
        )  # fmt: skip
        if as_json:
            cli_output.print_json(ranked.to_json())
        else:
            cli_output.print_ranking_calibration(ranked)
        return
    if top_k is not None:
        raise ConfigError("--top-k is for ranking; give --rank with it")
    outcome = run(
        checkpoint, data, criterion=criterion, speedup=speedup, agreement=agreement, accuracy_drop=accuracy_drop,
        tolerance=tolerance, confidence=confidence, choose_layers=choose_layers, out=out, data_format=input_format,
        text_column=text_column, pair_column=pair_column, label_column=label_column,
        notify=notify,
    )  # fmt: skip
    if as_json:
        cli_output.print_json(outcome.to_json())
    else:
        cli_output.print_calibration(outcome)


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Argument(help="Labelled rows: a file, a directory with a dev split, or a GLUE task.")],
    thresholds: Annotated[str | None, typer.Option(help="Thresholds, separated by commas.")] = None,
    speedups: Annotated[str | None, typer.Option(help="Calibrated layer speed-ups, separated by commas.")] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="Another checkpoint in the same run; may be repeated.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Separated by commas: accuracy, f1, pearson, spearman; for taggers span_f1 and others."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_tokens: BatchTokens = BATCH_TOKENS,
    batch_size: Annotated[int | None, typer.Option(help="Most rows per batch.")] = None,
    max_length: MaxLength = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    repeats: Annotated[int, typer.Option(help="Timed runs of each setting, interleaved.")] = 3,
    out: Annotated[str | None, typer.Option(help="Also write the report to this JSON file.")] = None,
    report: Annotated[str | None, typer.Option(help="Also write JSON, Markdown and pictures to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Measure quality, layer speed-up, wall-clock speed-up and exit layers, at full depth and at each threshold.

    Each exit is also judged by itself: quality, agreement with full depth, Difficulty Inversion Score, calibration.
    """
    from .evaluation import evaluate as run

    file, folder = out and Path(out), report and Path(report)
    if file:
        cli_io.check_file(file, "--out")
    if folder:
        cli_io.check_folder(folder, "--report")
    found = run(
        checkpoint, data, thresholds=numbers(thresholds, "--thresholds"), speedups=numbers(speedups, "--speedups"),
        compare=compare or (), metrics=metrics.split(",") if metrics else (),
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
    finally:  # show what was measured even if it cannot be written
        if as_json:
            cli_output.print_json(found.to_json())
        else:
            cli_output.print_report(found)
