"""`pfengine export`: checkpoints in the form that other servers take."""

from __future__ import annotations

from typing import Annotated

import typer

from . import console
from .cli_options import Checkpoint, Device, MaxLength, Precision, Speedup, Threshold
from .errors import ConfigError

TARGETS = ("triton",)


def export(
    target: Annotated[str, typer.Argument(help="triton: a model repository for NVIDIA Triton's python backend.")],
    checkpoint: Checkpoint,
    out: Annotated[str, typer.Argument(help="The repository; other models in it stay.")],
    name: Annotated[str | None, typer.Option(help="Of the model; by default that of the checkpoint.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most rows that the server puts together.")] = 64,
    max_queue_delay: Annotated[float, typer.Option(help="Milliseconds that it waits for them.")] = 0.5,
    max_queue_size: Annotated[int, typer.Option(help="Most requests that wait; others are refused.")] = 1024,
    criterion: Annotated[str | None, typer.Option(help="When rows exit, such as entropy:0.3 or never.")] = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_length: MaxLength = None,
    truncation: Annotated[
        str | None, typer.Option(help="truncate (default) cuts rows that are too long, error refuses them.")
    ] = None,
) -> None:
    """Write a checkpoint for another server, and print where."""
    from .stacks import triton_repository

    if target not in TARGETS:
        raise ConfigError(f"cannot export to {target!r}; it must be one of {', '.join(TARGETS)}")
    console.show(
        triton_repository.export(
            checkpoint,
            out,
            name=name,
            max_batch_size=max_batch_size,
            max_queue_delay=max_queue_delay,
            max_queue_size=max_queue_size,
            criterion=criterion,
            threshold=threshold,
            speedup=speedup,
            device=device,
            precision=precision,
            max_length=max_length,
            truncation=truncation,
        )
    )
