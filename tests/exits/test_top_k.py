"""The rule for the best k documents of a query, its margins, and the promise about them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine.exits.guarantee import NotShown
from pfengine.exits.top_k import TopK, exits_taken, same_set
from pfengine.exits.top_k_search import Queries, needed_margins, promise, proportions, scaled

INF = math.inf


def made(queries: int, documents: int = 30, exits: int = 5, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Scores that come nearer to those of the last exit from exit to exit: float32 [exits, queries, documents]."""
    draw = np.random.default_rng(seed)
    full = draw.normal(size=(queries, documents))
    off = noise * draw.normal(size=(exits, queries, documents)) * np.linspace(1, 0, exits)[:, None, None]
    return (full + off).astype(np.float32)


def by_hand(rule: TopK, scores: np.ndarray) -> np.ndarray:
    """One query, document by document: [exits, documents] -> the exit of each."""
    taken = [len(scores) - 1] * scores.shape[1]
    there = list(range(scores.shape[1]))
    for number, margin in enumerate(rule.margins):
        if margin == INF:
            continue
        gone = []
        for one in there:
            limit = scores[number, one] + np.float32(margin)
            # compared as the rule does: kth - margin > score
            above = sorted((scores[number, other] for other in there), reverse=True)
            if len(above) >= rule.k and scores[number, one] < above[rule.k - 1] - np.float32(margin):
                assert sum(score >= limit - 1e-5 for score in above) >= rule.k
                gone.append(one)
        for one in gone:
            taken[one] = number
        there = [one for one in there if one not in gone]
    return np.array(taken)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 14),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0, INF]), min_size=4, max_size=4),
    st.integers(0, 1000),
)
def test_a_document_leaves_where_k_others_are_above_it_by_the_margin(
    k: int, documents: int, margins: list[float], seed: int
) -> None:
    scores = made(3, documents, seed=seed).round(1)  # with ties
    rule = TopK(k, tuple(margins))
    padded = np.full((5, 3, documents + 2), -np.inf, np.float32)
    padded[:, :, :documents] = scores
    taken = exits_taken(rule, padded)
    for query in range(3):
        np.testing.assert_array_equal(taken[query, :documents], by_hand(rule, scores[:, query]))
    assert (taken[:, documents:] == 4).all()
    assert ((taken == 4).sum(1) >= min(k, documents)).all()  # the best k of those that stay are there


def test_a_score_that_is_none() -> None:
    rule = TopK(1, (0.5,))
    scores = np.float32([3, np.nan, 1, -np.inf])
    np.testing.assert_array_equal(rule.leave(0, scores), [False, False, True, False])
    nothing = np.float32([np.nan, np.nan])
    assert not rule.leave(0, nothing).any()
    assert not rule.leave(0, np.empty(0, np.float32)).any()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.35]), st.integers(0, 10_000))
def test_same_set_is_the_set_up_to_swaps_near_rank_k(k: int, documents: int, tolerance: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    full = draw.integers(0, 8, (1, documents)).astype(np.float32) / 10
    stays = draw.random((1, documents)) < 0.7
    if stays.sum() < k < documents:
        return  # no rule lets so many go
    kth = sorted(full[0], reverse=True)[min(k, documents) - 1]
    best = sorted((i for i in range(documents) if stays[0, i]), key=lambda i: -full[0, i])[:k]
    missing = [i for i in range(documents) if i not in best and full[0, i] > kth + np.float32(tolerance)]
    wrong = [i for i in best if full[0, i] < kth - np.float32(tolerance)]
    expected = documents <= k or not (missing or wrong)
    assert same_set(full, stays, k, tolerance)[0] == expected


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_needed_margins_are_the_smallest_without_a_fault(tolerance: float) -> None:
    scores, k = made(40), 5
    needed = needed_margins(scores, k, tolerance)
    for number in range(4):
        for query in range(40):
            for off, fine in ((1e-6, True), (-1e-3, False)):  # float32 rounds the difference of two scores
                margins = [INF] * 4
                margins[number] = float(needed[number, query]) + off
                taken = exits_taken(TopK(k, tuple(margins)), scores[:, query : query + 1])
                found = same_set(scores[-1, query : query + 1], taken == 4, k, tolerance)
                assert bool(found[0]) == fine


def test_margins_keep_to_the_limit_on_their_own_queries_and_are_faster_than_the_largest() -> None:
    queries = Queries(made(300), (1, 2, 3, 4, 5))
    margins = proportions(queries, 5, 0.0, 0.05)
    assert all(0 < margin < INF for margin in margins)
    speedup, faults = queries.judged(TopK(5, margins), 0.0)
    assert faults.mean() <= 0.05
    largest = tuple(float(each) for each in needed_margins(queries.scores, 5, 0.0).max(1))
    assert speedup > queries.judged(TopK(5, largest), 0.0)[0] > 1
    assert np.isclose(sum(queries.leaving(TopK(5, margins))), 1)


def test_exits_that_save_nothing_are_not_tested() -> None:
    scores = made(300)
    scores[0] = 0.0  # says nothing of any document
    scores[3] = scores[2]  # says nothing new
    margins = proportions(Queries(scores, (1, 2, 3, 4, 5)), 5, 0.0, 0.05)
    assert [math.isfinite(margin) for margin in margins] == [False, True, True, False]


@pytest.mark.slow
def test_the_promise_holds_on_other_queries_as_often_as_it_says() -> None:
    """100 times: margins and promise from 200 queries each, judged on 4,000 others.

    With confidence 0.9 more than 10 broken promises are expected to be rare: P(Bin(100, 0.1) > 18) < 0.005.
    """
    others = Queries(made(4000, documents=12, seed=99), (1, 2, 3, 4, 5))
    broken = 0
    for seed in range(100):
        drawn = Queries(made(400, documents=12, seed=seed), others.exit_layers)
        margins = proportions(drawn.of(np.arange(200)), 3, 0.0, 0.1)
        rule, promised = promise(drawn.of(np.arange(200, 400)), 3, margins, tolerance=0.0, limit=0.1, confidence=0.9)
        assert promised.p_value <= 0.1
        assert promised.faults <= 0.1 * promised.queries
        broken += others.judged(rule, 0.0)[1].mean() > 0.1
    assert broken <= 18


def test_no_promise_where_scores_tell_nothing() -> None:
    scores = made(400, noise=1.0)
    scores[:-1] = made(400, seed=5)[:-1]  # of other documents
    queries = Queries(scores, (1, 2, 3, 4, 5))
    with pytest.raises(NotShown, match=r"at the largest, \d+ of 400 queries are at fault"):
        promise(queries, 5, (0.01,) * 4, tolerance=0.0, limit=0.05, confidence=0.95)


def test_scaling_keeps_exits_that_are_not_tested() -> None:
    rule = scaled(3, (0.5, INF), 2.0)
    assert rule.margins == (1.0, INF)
    assert [rule.tests(number) for number in range(2)] == [True, False]
