"""What all faces share: a checkpoint as its path and options, loaded by the process that uses it."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..api import Engine, load
from ..bundled import BUNDLED, find
from ..errors import ConfigError

CALL_OPTIONS = ("truncation", "batch_tokens")  # of `Engine.classify`
OPTIONS = (*tuple(inspect.signature(load).parameters)[1:], *CALL_OPTIONS)
KNOBS = ("threshold", "speedup")  # what a request may say about its rows


class Predictor:
    """Answers rows of texts, pairs and dicts. It pickles as path and options, whether or not it has loaded the model.

    The engine is loaded when it is first needed, once per process, so a predictor is cheap to make, to send to workers
    and to keep in a driver. Safe to use from several threads.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], **options: Any) -> None:
        """checkpoint: a directory, or the name of a bundled checkpoint. options: those of `pfengine.load`, and
        truncation and batch_tokens of `Engine.classify`.

        A relative path is taken from the current directory now, as workers may have another one. The directory need
        only exist where the predictor is used. Raises ConfigError for an unknown option.
        """
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ConfigError(f"there is no option {unknown[0]!r}; a predictor takes {', '.join(OPTIONS)}")
        directory = find(checkpoint)
        self.checkpoint = directory.name if directory.parent == BUNDLED else os.path.abspath(directory)
        self.options = options
        self._engine: Engine | None = None
        self._loading = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.checkpoint, self.options)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({self.checkpoint!r}{options})"

    @property
    def engine(self) -> Engine:
        """The engine, loaded now unless it was before. Raises what `pfengine.load` raises, and ConfigError for a model
        that tags words."""
        with self._loading:
            if self._engine is None:
                options = {name: value for name, value in self.options.items() if name not in CALL_OPTIONS}
                engine = load(self.checkpoint, **options)
                if engine.model.head.tags:
                    raise ConfigError(f"{self.checkpoint} tags words and does not classify rows; use Engine.tag")
                self._engine = engine
            return self._engine

    def answers(self, rows: Sequence[Any], top_k: int | None = 1) -> list[Any]:
        """One answer per row, in order, as `Engine.classify` gives it; {"error", "row"} in the place of a bad row.

        A row may be a dict with a "threshold" or "speedup" of its own. All rows go through the engine in one call.
        """
        options = {name: self.options[name] for name in CALL_OPTIONS if name in self.options}
        return self.engine.classify(list(rows), top_k=top_k, on_error="return", **options)

    def columns(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """The answers as columns.

        "label": str, object [rows]; "score": float32 [rows]; "exit_layer": int64 [rows], 1-based; "error": str, object
        [rows], empty for a row that was answered. A bad row has its error, an empty label, score nan and exit layer 0.
        Nothing is None: a column of None alone would have no type, and parts of a table could not be joined.
        """
        answers = self.answers(rows)
        return {
            "label": _objects([answer.get("label", "") for answer in answers]),
            "score": np.array([answer.get("score", np.nan) for answer in answers], np.float32),
            "exit_layer": np.array([answer.get("exit_layer", 0) for answer in answers], np.int64),
            "error": _objects([answer.get("error", "") for answer in answers]),
        }


def with_knobs(row: Any, knobs: Mapping[str, Any]) -> Any:
    """A text, pair or dict with the "threshold" or "speedup" that a request gives for its rows. A dict's own stay."""
    given = {name: knobs[name] for name in KNOBS if knobs.get(name) is not None}
    if not given:
        return row
    if isinstance(row, Mapping):
        return dict(row) if any(row.get(name) is not None for name in KNOBS) else {**row, **given}
    text, pair = row if isinstance(row, tuple) and len(row) == 2 else (row, None)
    return {"text": text, **({} if pair is None else {"text_pair": pair}), **given}


def _rebuilt(kind: type[Predictor], checkpoint: str, options: dict[str, Any]) -> Predictor:
    return kind(checkpoint, **options)


def _objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found
