"""Finding the margins of `TopK` on held-out queries, and a promise about them.

The margins get their proportions on one half of the queries, and the promise their size on the other half, which had no
part in the first: Learn-then-Test, as in `exits.guarantee`, with a query in the place of a row. A query is at fault
where the set of its best k is not that of full depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .guarantee import NotShown, binomial_tail
from .top_k import TopK, exits_taken, same_set

SHARES = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.85, 0.8)  # of queries that an exit alone answers right
FLOOR = 0.1  # of an exit's spread, see `proportions`
EXIT_COST = 0.03  # layers: what testing an exit costs a row, as eleven exits cost 3% of twelve layers
FACTORS = tuple(float(factor) for factor in np.round(np.geomspace(4, 0.5, 40), 4))  # slowest first


@dataclass(frozen=True)
class Queries:
    """What every exit says of the documents of queries."""

    scores: np.ndarray  # float32 [exits, queries, documents], -inf in places without a document
    exit_layers: tuple[int, ...]  # 1-based; the last is the full model's

    def of(self, some: np.ndarray) -> Queries:
        return Queries(self.scores[:, some], self.exit_layers)

    def judged(self, rule: TopK, tolerance: float) -> tuple[float, np.ndarray]:
        """The layer speed-up under a rule, and which queries are at fault, bool [queries]."""
        taken = exits_taken(rule, self.scores)
        full = self.scores[-1]
        layers = np.asarray(self.exit_layers)[taken][full > -np.inf]
        stays = taken == len(self.scores) - 1
        return self.exit_layers[-1] * len(layers) / int(layers.sum()), ~same_set(full, stays, rule.k, tolerance)

    def leaving(self, rule: TopK) -> tuple[float, ...]:
        """The share of documents that leave at each exit, the last included."""
        taken = exits_taken(rule, self.scores)[self.scores[-1] > -np.inf]
        counts = np.bincount(taken, minlength=len(self.scores))
        return tuple(float(count) / len(taken) for count in counts)

    def same_full_depth(self, other: Queries, k: int, tolerance: float) -> np.ndarray:
        """Are the best k of another model after its last layer those of this one? bool [queries]."""
        full, theirs = self.scores[-1], other.scores[-1]
        best = np.argsort(-theirs, axis=1, kind="stable")[:, :k]
        stays = np.zeros(full.shape, bool)
        np.put_along_axis(stays, best, True, axis=1)
        return same_set(full, stays, k, tolerance)


@dataclass(frozen=True)
class RankingGuarantee:
    """What was promised of the best k, and what the fastest margins that keep it did on fresh queries."""

    limit: float  # largest share of queries at fault
    confidence: float
    tolerance: float  # how far from rank k's score documents may stand for each other
    layer_speedup: float
    faults: int
    queries: int
    p_value: float


def needed_margins(scores: np.ndarray, k: int, tolerance: float) -> np.ndarray:
    """The smallest margin at which an exit alone puts no query at fault: float32 [exits - 1, queries].

    scores: as in `Queries`, with more than k documents in every query.
    """
    full, exits = scores[-1], scores[:-1]
    kth = np.partition(full, -k, axis=1)[:, -k, None]
    near = np.float32(tolerance)
    must, may = full > kth + near, full >= kth - near
    inf = np.float32(np.inf)
    best = np.partition(exits, -k, axis=2)[:, :, -k]
    lowest = np.where(must, exits, inf).min(2)  # of those that must stay
    enough = np.partition(np.where(may, exits, -inf), -k, axis=2)[:, :, -k]  # k of those that may be in the set
    found: np.ndarray = best - np.minimum(lowest, enough)
    return found


def proportions(queries: Queries, k: int, tolerance: float, limit: float) -> tuple[float, ...]:
    """Margins, one per exit before the last layer, that cost least at a share of at most `limit` queries at fault.

    Each exit's margin is a quantile of `needed_margins`. It is at least FLOOR times how far the exit's scores spread
    around those of full depth, as a margin of 0 could not be scaled. They begin at the largest, and the exit whose next
    quantile saves most layers goes there, as long as the queries allow it. Exits that cost more than they save are not
    tested: inf.
    """
    needed = needed_margins(queries.scores, k, tolerance)
    levels = np.maximum(np.quantile(needed, SHARES, axis=1), FLOOR * _spread(queries.scores)).astype(np.float32)
    at = [0] * len(needed)

    def rule(places: list[int]) -> TopK:
        return TopK(k, tuple(float(levels[place, i]) for i, place in enumerate(places)))

    speedup = queries.judged(rule(at), tolerance)[0]
    while True:
        best = None
        for i, place in enumerate(at):
            if place + 1 < len(SHARES):
                moved = [*at[:i], place + 1, *at[i + 1 :]]
                faster, faults = queries.judged(rule(moved), tolerance)
                if faults.mean() <= limit and faster > speedup and (best is None or faster > best[0]):
                    best = faster, moved
        if best is None:
            break
        speedup, at = best
    return _worth_testing(queries, rule(at)).margins


def _worth_testing(queries: Queries, rule: TopK) -> TopK:
    """The rule without the exits that cost more to test than they save, from the lowest to the highest."""
    for number in range(len(rule.margins)):
        margins = (*rule.margins[:number], np.inf, *rule.margins[number + 1 :])
        taken, without = (exits_taken(each, queries.scores) for each in (rule, TopK(rule.k, margins)))
        there = queries.scores[-1] > -np.inf
        saved = float((np.asarray(queries.exit_layers)[without] - np.asarray(queries.exit_layers)[taken])[there].mean())
        if saved < EXIT_COST * float((taken >= number)[there].mean()):
            rule = TopK(rule.k, margins)
    return rule


def _spread(scores: np.ndarray) -> np.ndarray:
    """Of each exit, the median over queries of the standard deviation of its scores minus the last: [exits - 1]."""
    there = scores[-1] > -np.inf
    apart = np.where(there, scores[:-1] - np.where(there, scores[-1], 0), np.nan)
    found: np.ndarray = np.median(np.nanstd(apart, axis=2), axis=1)
    return found


def scaled(k: int, margins: tuple[float, ...], factor: float) -> TopK:
    return TopK(k, tuple(margin * factor for margin in margins))


def promise(
    queries: Queries, k: int, margins: tuple[float, ...], *, tolerance: float, limit: float, confidence: float
) -> tuple[TopK, RankingGuarantee]:
    """The margins at the smallest factor for which P(share of queries at fault <= limit) >= confidence.

    Raises NotShown where even the largest margins have too many faults.
    """
    count, best = queries.scores.shape[1], None
    for factor in FACTORS:
        rule = scaled(k, margins, factor)
        speedup, at_fault = queries.judged(rule, tolerance)
        faults = int(at_fault.sum())
        p_value = binomial_tail(faults, count, limit)
        if p_value > 1 - confidence:
            break
        best = rule, RankingGuarantee(limit, confidence, tolerance, speedup, faults, count, p_value)
    if best is None:
        raise NotShown(
            f"no margins keep the promise: at the largest, {faults} of {count} queries are at fault, too many to show "
            f"at most {limit:.4g} with confidence {confidence:g}; give a lower agreement or a larger tolerance"
        )
    return best
