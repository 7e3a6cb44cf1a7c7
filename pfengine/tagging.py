"""Tagging words: what `api.Engine.tag` does. Entities are those of `entities.entities`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from .answering import Host, Window
from .answers import probabilities
from .engine import CriterionFunction
from .entities import entities, split_tag
from .errors import ConfigError, InputError
from .exits import Criterion
from .inference import Runner
from .options import sizes
from .per_row import Number
from .rows import Row


class Tagged(list[dict[str, Any]]):
    """The entities of one text, in order, and what was said of each of its words.

    Of W words: tags, their labels; scores, the probability of each label; spans, the first character of each word in
    the text and the one after its last; exit_layers, the layer after which each word left, 1-based. `text` is what the
    characters are of: the text, or the given words joined by single spaces. first_word: how many given words before
    these truncation has cut off, 0 unless the tokenizer truncates on the left.
    """

    def __init__(
        self,
        found: Iterable[dict[str, Any]],
        text: str,
        tags: list[str],
        scores: list[float],
        spans: list[tuple[int, int]],
        exit_layers: list[int],
        first_word: int = 0,
    ) -> None:
        super().__init__(found)
        self.text, self.tags, self.scores, self.spans = text, tags, scores, spans
        self.exit_layers, self.first_word = exit_layers, first_word

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.text, self.tags, self.scores, self.spans, self.exit_layers, self.first_word)
        return Tagged, (list(self), *parts)

    @property
    def words(self) -> list[dict[str, Any]]:
        """{"text", "start", "end", "label", "score", "exit_layer"} of each word."""
        found = zip(self.spans, self.tags, self.scores, self.exit_layers, strict=True)
        return [
            {
                "text": self.text[start:end],
                "start": start,
                "end": end,
                "label": tag,
                "score": score,
                "exit_layer": layer,
            }
            for (start, end), tag, score, layer in found
        ]


class Tagging:
    """The part of an engine that tags words."""

    def tag(
        self: Host,
        texts: Any,
        *,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        on_error: Literal["raise", "return"] = "raise",
        truncation: Literal["truncate", "error"] = "truncate",
        batch_tokens: int = 4096,
        batch_size: int | None = None,
    ) -> list[Any]:
        """The entities of each text, in input order: a list of dicts per text, with `Tagged`'s word-by-word answers.

        {"label", "score", "text", "start", "end", "words", "exit_layers"}: the type, such as "PER"; the mean
        probability of its words' labels; its characters, text[start:end]; its words, of those that were given or of
        `Tagged.words`, number words[0] to words[1] - 1; and the layer after which each of them left, 1-based.

        texts: one text or an iterable of texts. A text is a string, {"text"}, or a list of words, as {"words"} holds
        them too. A list of strings is therefore a list of texts; give [words] for one row of words. `words` explains
        what the words of a string are. Characters are those of the string, or of the words joined by single spaces.

        Entities are read from the labels by the rule of conlleval and seqeval: of IOB1, IOB2, IOBES and BILOU alike, an
        entity begins at B and S, after E and S, and wherever the type changes. A label without a prefix, such as "PER",
        is a type of its own, whose adjacent words are one entity; "O" is none. With WordPiece these are the entities of
        transformers' pipeline with aggregation_strategy="first", except for E and S, which it does not know.

        Other options are those of `Engine.classify`. Words that truncation cuts off have no answer, and a warning
        counts the texts. Raises ConfigError where the model does not tag words or the options do not fit it.
        """
        return list(
            Tagging.stream_tags(
                self,
                texts,
                criterion=criterion,
                threshold=threshold,
                speedup=speedup,
                on_error=on_error,
                truncation=truncation,
                batch_tokens=batch_tokens,
                batch_size=batch_size,
            )
        )

    def stream_tags(
        self: Host,
        texts: Iterable[Any],
        *,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        on_error: Literal["raise", "return"] = "raise",
        truncation: Literal["truncate", "error"] = "truncate",
        batch_tokens: int = 4096,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """`tag`, lazily, as `Engine.stream` is `classify`."""
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        if not self.model.head.tags:
            raise ConfigError(
                f"{self.checkpoint.path} classifies whole rows and does not tag their words; use classify"
            )
        selection, rows = self._selected(texts, criterion, threshold, speedup)
        runner, scheme = Runner(self.model, self.precision, *sizes(batch_tokens, batch_size)), scheme_of(self.labels)
        read = self._windows(rows, truncation, runner.batch_tokens, flush_when_slow=True)
        windows = (selection.resolved(_with_text(window)) for window in read)

        def results() -> Iterator[Any]:
            for window, logits, exit_layers, _ in self._answered(texts, windows, selection, runner):
                scores = probabilities(logits, self.model.config.problem_type)
                for row, own, layers in zip(window, scores, exit_layers, strict=True):
                    if not isinstance(row, InputError):
                        yield _tagged(row, own[: row.word_count], layers[: row.word_count], self.labels, scheme)
                    elif on_error == "raise":
                        raise row
                    else:
                        yield {"error": row.reason, "row": row.row}

        return results()


def scheme_of(labels: Sequence[str]) -> list[str]:
    """The labels with a prefix each, but "O": those without one become I-, so that adjacent ones are one entity."""
    marked = ["O" if label == "O" else label if split_tag(label)[1] else f"I-{label}" for label in labels]
    return marked


def _with_text(window: Window) -> list[Row | InputError]:
    """The window, with an error in the place of each row of ids, which says nothing of its characters."""
    return [
        InputError(row.row_id, "is token ids, which have no characters; give a text or its words, or use predict")
        if isinstance(row, Row) and row.text is None
        else row
        for row in window
    ]


def _tagged(
    row: Row, scores: np.ndarray, exit_layers: np.ndarray, labels: Sequence[str], scheme: Sequence[str]
) -> Tagged:
    """scores: [words, labels]; exit_layers: [words]."""
    assert row.text is not None
    assert row.spans is not None
    best, spans, layers = scores.argmax(-1).tolist(), [tuple(span) for span in row.spans.tolist()], exit_layers.tolist()
    own = scores.max(-1, initial=0.0).tolist()
    found = []
    for kind, first, stop in entities([scheme[label] for label in best]):
        start, end = spans[first][0], spans[stop - 1][1]
        found.append(
            {
                "label": kind,
                "score": float(np.mean(own[first:stop])),
                "text": row.text[start:end],
                "start": start,
                "end": end,
                "words": [first + row.first_word, stop + row.first_word],
                "exit_layers": layers[first:stop],
            }
        )
    return Tagged(found, row.text, [labels[label] for label in best], own, spans, layers, row.first_word)
