"""The command that tags words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import cli_io, cli_output
from .api import BATCH_TOKENS, load
from .cli_options import (
    BatchTokens,
    Checkpoint,
    Device,
    Format,
    Json,
    MaxLength,
    Precision,
    Speedup,
    TextColumn,
    Threshold,
    UnusedLabelColumn,
)
from .console import show as show_line
from .tagging import Tagged


def tag(
    checkpoint: Checkpoint,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: read --file or standard input.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="Text (one row per line), CoNLL's columns, or .tsv, .csv, .jsonl, .parquet with texts or lists of "
            "words, compressed or not; - is standard input."
        ),
    ] = None,
    input_format: Format = "auto",
    text_column: TextColumn = None,
    label_column: UnusedLabelColumn = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    criterion: Annotated[str | None, typer.Option(help="When words exit, such as tokee:0.2,5 or never.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: Json = False,
) -> None:
    """Tag the words of texts: print the entities of each text, and its words' mean exit layer, in input order.

    With --json a line is {"entities": [...], "words": [...]}; start and end are characters of the text, or of the words
    joined by single spaces. A text that cannot be tagged gets an error in its place, and the exit code is 1.
    """
    source, file = cli_io.source_of(texts, file, input_format, text_column, None, label_column)
    engine = load(
        checkpoint,
        device=device,
        precision=precision,
        criterion=criterion,
        threshold=threshold,
        speedup=speedup,
        max_length=max_length,
    )

    def show(row: Any, result: Any) -> None:
        cli_output.print_result(row, result, as_json) if isinstance(result, dict) else _print(result, as_json)

    def answers(rows: Any) -> Any:
        return engine.stream_tags(rows, on_error="return", batch_tokens=batch_tokens)

    cli_io.print_answers(source, file, answers, show, "tag", "tagged")


def _print(found: Tagged, as_json: bool) -> None:
    if as_json:
        cli_output.print_json({"entities": list(found), "words": found.words})
        return
    entities = "  ".join(f"{one['label']} {one['score']:.4f} {one['text']!r}" for one in found) or "-"
    layers = found.exit_layers
    mean = f"{sum(layers) / len(layers):4.1f}" if layers else "   -"
    show_line(f"{entities}  layer {mean}  {found.text}")
