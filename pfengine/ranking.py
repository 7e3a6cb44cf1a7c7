"""Ranking documents for a query: what `api.Engine.rank` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from .answering import Host, answered
from .answers import FUNCTIONS, probabilities
from .config import BackboneConfig
from .engine import CriterionFunction
from .errors import ConfigError, InputError
from .exits import Criterion
from .exits.top_k import TopK
from .inference import Answered
from .manifest import Manifest
from .messages import warn
from .options import whole
from .per_row import Number
from .ranked import answer_top_k
from .rows import Unreadable, rows_of

ACTIVATIONS = ("sigmoid", "none")  # of FUNCTIONS


class Ranking:
    """The part of an engine that ranks documents.

    own_criterion: the checkpoint's, where `load` was told no other; else None.
    """

    own_criterion: CriterionFunction | None = None

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
        query and document left, 1-based. In a cascade there is also "model", as in `Engine.classify`. Documents are
        ordered by their logits, which tell apart what a sigmoid rounds to 1. Those with equal logits keep the order of
        the input.

        Where the checkpoint has margins for the best k (`calibrate_ranking`), top_k is at most k, and nobody says
        otherwise by `criterion`, `threshold` or `speedup`, here or in `load`, documents leave that are surely not among
        the best k. The others go through all layers, so that the answer has their own scores. For a larger top_k no
        document leaves, and a warning says so. In all other cases each pair leaves by itself.

        The model is a cross-encoder: it has one label. query: a string. documents: an iterable of strings or
        {"text"}, read to its end. A dict may also have the document's own "threshold" or "speedup"; other keys are
        ignored. Without documents the answer is []. An empty document is scored as the query alone, as `classify` does.
        top_k: only the best so many; None: all of them.
        return_documents: also the key "text", the document as it was given.
        activation: what makes a score of a logit, "sigmoid" or "none". None is what sentence-transformers saved with
        the model, and where it saved nothing what `classify` does: "none" where the checkpoint's problem type is
        regression, else "sigmoid". It does not change the order.
        on_error: "raise" an InputError that names the first document without an answer, or "return" {"error", "row"}
        for each of them, after the others and in input order. They do not count for `top_k`.

        Other options are those of `Engine.classify`, except that all documents are one batch where the margins decide.
        Raises ConfigError where the model is no cross-encoder, the query is no string, or the options do not fit the
        model or each other.
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
        function = activation or saved_activation(self.model.config)
        kind = self.model.config.problem_type if function is None else FUNCTIONS[function]
        windows, of_margins = _answers(
            self, rows, top, criterion, threshold, speedup, truncation, batch_tokens, batch_size
        )
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
        values = probabilities(found, kind)[:, 0]
        return [
            {"index": indexes[i], "score": float(values[i]), "exit_layer": layers[i]}
            | ({"model": models[i]} if models[i] else {})
            | ({"text": _text(given[indexes[i]])} if return_documents else {})
            for i in best_first(found[:, 0], np.array(layers) < self.model.num_layers if of_margins else None)[:top]
        ] + failed


def _answers(
    engine: Host,
    rows: list[Any],
    top: int | None,
    criterion: Any,
    threshold: Number,
    speedup: Number,
    truncation: Any,
    batch_tokens: int,
    batch_size: int | None,
) -> tuple[Iterator[Answered], bool]:
    """The answers to the rows of one query, and whether the margins for its best decided; else each row by itself."""
    margins = own_margins(engine)
    told = any(each is not None for each in (criterion, threshold, speedup))
    own = any(isinstance(row, dict) and ("threshold" in row or "speedup" in row) for row in rows)
    if margins is None or top is None or told or own:
        return answered(engine, rows, criterion, threshold, speedup, truncation, batch_tokens, batch_size), False
    if top > margins.k:
        warn(
            f"top_k is {top}, and {engine.checkpoint.path} was calibrated for the best {margins.k}: no document leaves "
            "early"
        )
        return answered(engine, rows, "never", None, None, truncation, batch_tokens, batch_size), False
    runner = engine._runner(batch_tokens, batch_size, truncation)
    window = [row for part in engine._windows(rows, truncation, runner.batch_tokens) for row in part]
    return iter([answer_top_k(engine.model, window, margins, engine.precision)]), True


def best_first(logits: np.ndarray, left: np.ndarray | None) -> np.ndarray:
    """Places by their logits, the largest first; after all others those that `left` because they are not wanted.

    Logits of different layers do not compare: one that left with a higher score than a document of the last layer was
    surely below it there.
    """
    if left is None:
        return np.argsort(-logits, kind="stable")
    return np.lexsort((-logits, left))


def own_margins(engine: Host) -> TopK | None:
    """The checkpoint's margins; None where it has none, or `load` was told when rows leave."""
    if engine.own_criterion is None or engine.criterion is not engine.own_criterion:
        return None
    return top_k_margins(engine.checkpoint.manifest, engine.model.exit_layers)


def top_k_margins(manifest: Any, exit_layers: tuple[int, ...]) -> TopK | None:
    """The rule that `calibrate_ranking` wrote into a checkpoint; None where there is none, as in a cascade."""
    if not isinstance(manifest, Manifest) or manifest.ranking is None or manifest.exit_layers != exit_layers:
        return None
    return TopK.of(manifest.ranking)


def saved_activation(config: BackboneConfig) -> str | None:
    """What sentence-transformers saved as the activation of a cross-encoder, one of ACTIVATIONS; None where nothing.

    Raises ConfigError for an activation of another kind.
    """
    saved = config.raw.get("sentence_transformers")
    path = saved.get("activation_fn") if isinstance(saved, dict) else None
    path = path or config.raw.get("sbert_ce_default_activation_function")
    if path is None:
        return None
    kind = {"Identity": "none", "Sigmoid": "sigmoid"}.get(str(path).rpartition(".")[2])
    if kind is None:
        raise ConfigError(f"the model's activation is {path!r}; give activation='sigmoid' or 'none'")
    return kind


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
