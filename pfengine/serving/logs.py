"""Logs as JSON, a line per event and one per request. They hold counts, layers and times, and never a text."""

from __future__ import annotations

import json
import logging
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from ..messages import tell
from .endpoint import Call
from .served import STAGES

requests = logging.getLogger("pfengine.serving.requests")
PACKAGE = Path(__file__).parent.parent


def as_json() -> None:
    """From now on the log lines of pfengine and uvicorn, and warnings, are JSON objects on standard error."""
    handler = Lines()
    for name in ("pfengine", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "pfengine" else logging.WARNING)
    warnings.showwarning = lambda message, *_args, **_kwargs: logging.getLogger("pfengine").warning("%s", message)


class Lines(logging.Handler):
    """Writes records as JSON: time, level, logger, message, the fields of `extra={"fields": {...}}`, and of an error
    its type and where it was raised. The error's own message is left out, as it may hold a text."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tell(json.dumps(_fields(record), ensure_ascii=True, default=str))
        except Exception:
            self.handleError(record)


def log_request(call: Call, failure: str | None) -> None:
    """One line about a request that is over, at level INFO. failure: what went wrong.

    The times are milliseconds; exit_layers has an entry per row, 0 for one without an answer.
    """
    fields: dict[str, Any] = {
        "method": call.method,
        "failure": failure,
        "total_ms": round(1000 * (time.perf_counter() - call.started), 3),
    }
    if call.answers:
        found = [answer for _, answer in call.answers]
        fields |= {
            "models": [name for name, _ in call.answers],
            "rows": sum(len(answer.exit_layers) for answer in found),
            "tokens": sum(sum(answer.tokens) for answer in found),
            "exit_layers": [layer for answer in found for layer in answer.exit_layers.tolist()],
        }
        for stage in STAGES:
            fields[f"{stage}_ms"] = round(1000 * sum(getattr(answer, stage) for answer in found), 3)
    requests.info("request", extra={"fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    found = {
        "time": f"{second}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    } | getattr(record, "fields", {})
    kind, _, trace = record.exc_info if isinstance(record.exc_info, tuple) else (None, None, None)
    if kind is not None:
        found["error"] = kind.__name__
        found["raised_at"] = [
            f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)
        ]
    return found


def _short(file: str) -> str:
    """The path of a file of ours within the package, of another one its last two parts."""
    path = Path(file)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else "/".join(path.parts[-2:])
