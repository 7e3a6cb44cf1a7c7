"""The command that ranks documents."""

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
from .console import say
from .console import show as show_line
from .errors import ConfigError


def rank(
    checkpoint: Checkpoint,
    query: Annotated[str, typer.Argument(help="What the documents are ranked for.")],
    file: Annotated[
        str,
        typer.Argument(
            help="Documents: text (one per line), or .tsv, .csv, .jsonl, .parquet, compressed or not; - is standard "
            "input."
        ),
    ],
    input_format: Format = "auto",
    text_column: TextColumn = None,
    label_column: UnusedLabelColumn = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    criterion: Annotated[str | None, typer.Option(help="When documents exit, such as patience:2,0.1 or never.")] = None,
    top_k: Annotated[int, typer.Option(help="Documents to print; 0 for all.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = BATCH_TOKENS,
    as_json: Json = False,
) -> None:
    """Rank documents for a query: print score, exit layer, place in the file (from 0) and text of each, best first.

    The checkpoint is a cross-encoder, a model with one label. With --json a line is {"index", "score", "exit_layer"}. A
    document that cannot be scored gets an error after the others, and the exit code is 1.
    """
    asked = cli_io.argument(query)
    if not isinstance(asked, str):
        raise ConfigError(f"the query {asked.reason}")
    if top_k < 0:
        raise ConfigError(f"--top-k is {top_k}; it must be at least 0")
    source, _ = cli_io.source_of(None, file, input_format, text_column, None, label_column)
    engine = load(
        checkpoint,
        device=device,
        precision=precision,
        criterion=criterion,
        threshold=threshold,
        speedup=speedup,
        max_length=max_length,
    )
    with source as rows:
        documents = list(rows)
    answers = engine.rank(asked, documents, top_k=top_k or None, on_error="return", batch_tokens=batch_tokens)
    failed = 0
    for answer in answers:
        failed += "error" in answer
        _print(answer, documents, as_json)
    if failed:
        say(f"error: {failed} of {len(documents)} documents could not be ranked")
        raise typer.Exit(1)


def _print(answer: dict[str, Any], documents: list[Any], as_json: bool) -> None:
    if as_json or "error" in answer:
        cli_output.print_result(None, answer, as_json)
        return
    document = documents[answer["index"]]
    text = document if isinstance(document, str) else document["text"]
    show_line(f"{answer['score']:.4f}  layer {answer['exit_layer']:>2}  {answer['index']:>4}  {text}")
