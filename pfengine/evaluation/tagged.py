"""Judging taggers: the words of all rows laid end to end, and span F1 and accuracy over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..api import Engine
from ..data import TaggedExample, tag_ids
from ..entities import entities, names_entities
from ..errors import ConfigError
from ..exits import DataCriterion
from ..exits.calibration import alike, calibration_table, table_of
from ..rows import Row

TAG_METRICS = ("span_f1", "span_precision", "span_recall", "accuracy")
RESAMPLES = 200
UNANSWERED = -1  # the label id of a word that truncation cut off; it is never right, and outside of entities


@dataclass(frozen=True)
class Words:
    """The words of tagged rows, laid end to end: row r has words bounds[r] to bounds[r + 1].

    truth: label ids, int64 [W]; None where the rows have no tags. labels: the names of the ids. side: which side the
    tokenizer cuts words off from a row that is too long.
    """

    bounds: np.ndarray
    truth: np.ndarray | None
    labels: tuple[str, ...]
    side: str = "right"

    @staticmethod
    def of(examples: Sequence[TaggedExample], labels: tuple[str, ...], file: str, side: str = "right") -> Words:
        """Those of a data set. ConfigError names the first row with a tag that is none of `labels`."""
        bounds = np.cumsum([0, *(len(example.words) for example in examples)])
        if examples[0].tags is None:
            return Words(bounds, None, labels, side)
        truth = np.concatenate([np.array(ids, np.int64) for ids in tag_ids(examples, labels, file)])
        return Words(bounds, truth, labels, side)

    def flat(self, values: np.ndarray, answered: np.ndarray, fill: Any) -> np.ndarray:
        """[rows, words of the longest row] -> [W], with `fill` for words that were cut off.

        answered: bool [rows, words of the longest row], which words have a value.
        """
        out = np.full(self.bounds[-1], fill, values.dtype)
        out[self._places(answered)] = values[answered]
        return out

    def kept(self, answered: np.ndarray) -> Words:
        """Without the words that were cut off."""
        truth = None if self.truth is None else self.truth[self._places(answered)]
        return replace(self, bounds=np.cumsum([0, *answered.sum(1)]), truth=truth)

    def score(self, logits: np.ndarray) -> dict[str, float]:
        """All default metrics of the words' answers [W, labels]; none where the rows have no tags."""
        if self.truth is None:
            return {}
        answers, truth = logits.argmax(-1), self.truth
        return {name: metric(answers, truth) for name, metric in self.metrics().items()}

    def _places(self, answered: np.ndarray) -> np.ndarray:
        """Where the answered words are among all, in their order."""
        counts = answered.sum(1)
        starts = self.bounds[:-1] if self.side == "right" else self.bounds[1:] - counts
        return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)

    def metrics(self, names: Sequence[str] = ()) -> dict[str, TagMetric]:
        """The metrics of these names, of TAG_METRICS; default: span F1 where the labels mark entities, and accuracy.

        Raises ConfigError for an unknown name, and for span metrics where labels do not mark entities.
        """
        spans = names_entities(self.labels)
        for name in names:
            if name not in TAG_METRICS:
                raise ConfigError(f"metric {name!r} is not one of a tagger's, {', '.join(TAG_METRICS)}")
            if name != "accuracy" and not spans:
                raise ConfigError(
                    f"metric {name!r} needs labels such as B-PER, I-PER and O; the model has {', '.join(self.labels)}"
                )
        chosen = names or (("span_f1", "accuracy") if spans else ("accuracy",))
        counted = _Counted(self)
        return {name: TagMetric(name, counted) for name in chosen}


def tag_table(engine: Engine, criterion: DataCriterion, rows: Sequence[Any], words: Words) -> list[dict[str, Any]]:
    """`calibration_table` of a tagger; layer speed-up, agreement and quality count words, span F1 entities.

    Where the criterion freezes tokens, exits do not follow from the logits at full depth. Then the engine runs at every
    threshold that is tried, of the criterion's grid, and the search is a bisection, as if no word left later at a
    faster threshold; the points are what was measured. engine: at full depth.
    """
    logits = engine.layer_logits(rows)
    answered = ~np.isnan(logits[-1, ..., 0])
    words, flat = words.kept(answered), np.stack([each[answered] for each in logits])
    token_rule = criterion.tokens()
    if token_rule is None or not token_rule.freezes:
        bounds = words.bounds.astype(np.int32)
        return calibration_table(criterion, flat, None, engine.exit_layers, bounds=bounds, score=words.score)

    def run(threshold: float) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        out = engine.predict(rows, criterion=criterion.with_threshold(threshold))
        answers = out.logits[answered]
        return out.exit_layers[answered], lambda: answers

    def judged(answers: np.ndarray) -> dict[str, float]:
        return {"agreement": float(alike(answers, flat[-1]).mean()), "rows": len(answers)} | words.score(answers)

    grid = criterion.grid(len(engine.exit_layers), len(engine.labels))
    return table_of(run, grid, True, engine.num_layers, judged)


def token_speedup(engine: Engine, rows: Sequence[Any], exit_layers: np.ndarray, freezes: bool) -> float:
    """n times the number of tokens / the layers that are computed of them, special tokens among them.

    exit_layers: of words, int64 [rows, words of the longest row]. freezes: are the pieces of a word that has left
    computed no more? Otherwise all tokens are, until their row has left.
    """
    whole = spent = 0
    for row, layers in zip(engine.tokenizer.encode(enumerate(rows)), exit_layers, strict=True):
        if not isinstance(row, Row) or not row.word_count:  # `predict` raises for a bad row
            continue
        own, last = layers[: row.word_count], int(layers.max())
        pieces = np.ones(row.word_count, np.int64) if row.pieces is None else row.pieces
        if engine.model.head.freezes_first_pieces:
            pieces = np.minimum(pieces, 1)
        saved = int((pieces * (last - own)).sum()) if freezes else 0
        whole, spent = whole + len(row.ids), spent + last * len(row.ids) - saved
    return engine.num_layers * whole / spent if spent else float("nan")


@dataclass
class _Counted:
    """What metrics are computed from, per row; kept for the answers that were counted last."""

    words: Words
    last: tuple[np.ndarray, np.ndarray] | None = None
    true: list[set[Any]] = field(default_factory=list)

    def spans(self, answers: np.ndarray) -> np.ndarray:
        """int64 [rows, 3]: right entities, entities in the answers, entities in the truth."""
        if self.last is not None and np.array_equal(self.last[0], answers):
            return self.last[1]
        assert self.words.truth is not None
        self.true = self.true or self._entities(self.words.truth)
        found = self._entities(answers)
        counts = np.array([(len(a & t), len(a), len(t)) for a, t in zip(found, self.true, strict=True)], np.int64)
        self.last = answers, counts
        return counts

    def right(self, answers: np.ndarray) -> np.ndarray:
        """int64 [rows, 3]: right words, words, words."""
        bounds = self.words.bounds
        right = np.diff(np.cumsum([0, *(answers == self.words.truth)])[bounds])
        return np.stack([right, np.diff(bounds), np.diff(bounds)], 1)

    def _entities(self, ids: np.ndarray) -> list[set[Any]]:
        names, bounds = [*self.words.labels, "O"], self.words.bounds  # UNANSWERED is the last
        tags = [names[i] for i in ids.tolist()]
        return [set(entities(tags[start:end])) for start, end in zip(bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class TagMetric:
    """A metric of label ids [W]. Span metrics count entities whose type and words are both right, over all rows.

    Precision, recall and F1 are micro averages, as conlleval and seqeval give them; 0 where nothing is to be counted.
    """

    name: str
    counted: _Counted

    def __call__(self, answers: np.ndarray, truth: np.ndarray) -> float:
        return float(self._of(self._counts(answers).sum(0)[None])[0])

    def standard_error(self, answers: np.ndarray) -> float:
        """Over randomly drawn rows, from RESAMPLES bootstrap samples: the words of a row are not independent."""
        counts, draw = self._counts(answers), np.random.default_rng(0)
        rows = len(counts)
        samples = np.stack([counts[draw.integers(0, rows, rows)].sum(0) for _ in range(RESAMPLES)])
        return float(self._of(samples).std())

    def _counts(self, answers: np.ndarray) -> np.ndarray:
        return self.counted.right(answers) if self.name == "accuracy" else self.counted.spans(answers)

    def _of(self, sums: np.ndarray) -> np.ndarray:
        """int64 [n, 3] -> float64 [n]."""
        right, found, true = sums.T.astype(np.float64)
        below = {"span_precision": found, "span_recall": true}.get(self.name, (found + true) / 2)
        return np.divide(right, below, out=np.zeros_like(right), where=below > 0)
