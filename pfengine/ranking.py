"""Ranking documents for a query: what `api.Engine.rank` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from .answering import Host, answered
from .answers import FUNCTIONS, probabilities
from .engine import CriterionFunction
from .errors import ConfigError, InputError
from .exits import Criterion
from .options import whole
from .per_row import Number
from .rows import Unreadable, rows_of

ACTIVATIONS = ("sigmoid", "none")  # of FUNCTIONS


class Ranking:
    """The part of an engine that ranks documents."""

    def rank(
        self: Host,
        query: str,
        documents: Iterable[Any],
        *,
        top_k: int | None = None,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        return_documents: bool = False,
        activation: Literal["sigmoid", "none"] | None = None,
        on_error: Literal["raise", "return"] = "raise",
        truncation: Literal["truncate", "error"] = "truncate",
        batch_tokens: int = 4096,
        batch_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """The documents by their score for a query, best first: {"index", "score", "exit_layer"}.

        "index" is the document's place in `documents`, 0-based, and "exit_layer" the layer after which the pair of
        query and document left, 1-based. Each pair leaves by itself. In a cascade there is also "model", as in
        `Engine.classify`. Documents are ordered by their logits, which tell apart what a sigmoid rounds to 1. Those
        with equal logits keep the order of the input.

        The model is a cross-encoder: it has one label. query: a string. documents: an iterable of strings or
        {"text"}, read to its end. A dict may also have the document's own "threshold" or "speedup"; other keys are
        ignored. Without documents the answer is []. An empty document is scored as the query alone, as `classify` does.
        top_k: only the best so many; None: all of them.
        return_documents: also the key "text", the document as it was given.
        activation: what makes a score of a logit, "sigmoid" or "none". None is what `classify` does: "none" where the
        checkpoint's problem type is regression, else "sigmoid". It does not change the order.
        on_error: "raise" an InputError that names the first document without an answer, or "return" {"error", "row"}
        for each of them, after the others and in input order. They do not count for `top_k`.

        Other options are those of `Engine.classify`. Raises ConfigError where the model is no cross-encoder, the query
        is no string, or the options do not fit the model or each other.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        if activation not in (None, *ACTIVATIONS):
            raise ConfigError(f"activation is {activation!r}; it must be 'sigmoid', 'none' or None")
        top = None if top_k is None else whole("top_k", top_k, ", or None for all documents")
        if self.model.head.tags:
            raise ConfigError(f"{self.checkpoint.path} tags words and does not rank documents; use tag")
        if len(self.labels) != 1:
            raise ConfigError(
                f"{self.checkpoint.path} has {len(self.labels)} labels and does not rank documents, which takes a "
                "model with one label; use classify"
            )
        if not isinstance(query, str):
            raise ConfigError(f"query is of type {type(query).__name__}; it must be a string")
        given = _listed(documents)
        rows = [_row(query, document) for document in given]
        windows = answered(self, rows, criterion, threshold, speedup, truncation, batch_tokens, batch_size)
        indexes, logits, layers, models, failed = [], list[np.ndarray](), list[int](), list[int](), []
        for window, scores, exit_layers, of_model in windows:
            for i, row in enumerate(window):
                if isinstance(row, InputError):
                    if on_error == "raise":
                        raise row
                    failed.append({"error": row.reason, "row": row.row})
                    continue
                indexes.append(row.row_id)
                logits.append(scores[i])
                layers.append(int(exit_layers[i]))
                models.append(0 if of_model is None else int(of_model[i]))
        if not indexes:
            return failed
        found = np.stack(logits)
        problem = self.model.config.problem_type if activation is None else FUNCTIONS[activation]
        values = probabilities(found, problem)[:, 0]
        return [
            {"index": indexes[i], "score": float(values[i]), "exit_layer": layers[i]}
            | ({"model": models[i]} if models[i] else {})
            | ({"text": _text(given[indexes[i]])} if return_documents else {})
            for i in np.argsort(-found[:, 0], kind="stable")[:top]
        ] + failed


def _listed(documents: Any) -> list[Any]:
    """Raises ConfigError where `documents` is one document, or no iterable of them."""
    if isinstance(documents, (list, tuple)):  # of two strings too, which elsewhere is a pair
        return list(documents)
    if isinstance(documents, (str, bytes, bytearray, Mapping)) or not hasattr(type(documents), "__iter__"):
        raise ConfigError(f"documents is of type {type(documents).__name__}; give a list of documents")
    return list(rows_of(documents))


def _row(query: str, document: Any) -> Any:
    """The pair of query and document as a row; what is no document becomes the error of its row."""
    if isinstance(document, Unreadable):
        return document
    try:
        text = _text(document)
        if isinstance(document, Mapping) and "text_pair" in document:
            return Unreadable("has 'text' and 'text_pair'; a document is one text")
        if isinstance(text, str):
            own = document if isinstance(document, Mapping) else {}
            knobs = {name: own[name] for name in ("threshold", "speedup") if own.get(name) is not None}
            return {"text": query, "text_pair": text} | knobs
    except Exception as error:  # raised by the document's own methods
        return Unreadable(f"of type {type(document).__name__} cannot be read: it raises {type(error).__name__}")
    if isinstance(document, tuple):
        return Unreadable("is a tuple; a document is one text")
    what = (
        "a dict without a string as 'text'" if isinstance(document, Mapping) else f"of type {type(document).__name__}"
    )
    return Unreadable(f"is {what}; a document is a string or {{'text'}}")


def _text(document: Any) -> Any:
    return document.get("text") if isinstance(document, Mapping) else document
