"""Why a request is not answered, whatever the wire format. Each format says which status and body a kind becomes."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "empty",  # there is nothing to classify
    "validation",  # the request makes no sense, or is over a limit
    "tokenizer",  # a row cannot be tokenised
    "too_large",  # the body has too many bytes
    "overloaded",  # the queue is full
    "deadline",  # the request's deadline passed before there was an answer
    "backend",  # the model failed on these rows
    "unhealthy",  # the engine is down, or being started again
    "unauthorized",
    "unknown_model",
    "unsupported",  # the model does not do this
]


class Failure(Exception):
    """A request that is not answered. The message goes to the client: it holds no path and nothing of the inside.

    row: which of the request's rows is to blame, 0-based; None for none in particular. retry_after: seconds after which
    it may be tried again.
    """

    def __init__(self, kind: Kind, message: str, *, row: int | None = None, retry_after: float | None = None) -> None:
        self.kind, self.message, self.row, self.retry_after = kind, message, row, retry_after
        super().__init__(message)


def overloaded() -> Failure:
    return Failure("overloaded", "Model is overloaded", retry_after=1.0)


def shutting_down() -> Failure:
    return Failure("unhealthy", "the server is shutting down", retry_after=1.0)


def check_rows(rows: int, most: int) -> None:
    """Raise Failure where a request has more rows than `max_client_batch_size`."""
    if rows > most:
        raise Failure("validation", f"batch size {rows} > maximum allowed batch size {most}")
