"""`Engine.rank` by the margins of a checkpoint: documents leave that are surely not among the best k."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.exits.top_k import TopK, exits_taken
from pfengine.ranked import answer_top_k

from .margins import DOCUMENTS, QUERY, RULE, K, checkpoint_with_margins, with_margins

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(make_text_checkpoint: Make) -> Path:
    return checkpoint_with_margins(make_text_checkpoint)


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> pfengine.Engine:
    return pfengine.load(checkpoint, precision=request.param)


def simulated(engine: pfengine.Engine, documents: list[str], rule: TopK = RULE) -> tuple[np.ndarray, np.ndarray]:
    """The exit layers of the documents, and their order, from what all exits say of each."""
    scores = engine.layer_logits([(QUERY, document) for document in documents])[:, None, :, 0]
    taken = exits_taken(rule, scores)[0]
    order = np.argsort(-np.where(taken == len(scores) - 1, scores[-1, 0], -np.inf), kind="stable")
    return np.array(engine.exit_layers)[taken], order


def test_documents_leave_as_all_their_scores_say(engine: pfengine.Engine) -> None:
    layers, order = simulated(engine, DOCUMENTS)
    assert len(set(layers.tolist())) > 2, "some leave early, at several layers"
    full = engine.rank(QUERY, DOCUMENTS, criterion="never")
    logits = {one["index"]: one["score"] for one in full}
    for top_k in (1, 2, K):
        ranked = engine.rank(QUERY, DOCUMENTS, top_k=top_k)
        assert [one["index"] for one in ranked] == order[:top_k].tolist()
        assert all(one["exit_layer"] == 5 for one in ranked), "the best come from the last layer"
        assert all(one["score"] == logits[one["index"]] for one in ranked), "with the scores of full depth, to the bit"
    window = engine.tokenizer.encode(enumerate((QUERY, document) for document in DOCUMENTS))
    found = answer_top_k(engine.model, window, RULE, engine.precision)
    np.testing.assert_array_equal(found.exit_layers, layers)


def test_options_of_the_batch_change_nothing(engine: pfengine.Engine) -> None:
    ranked = engine.rank(QUERY, DOCUMENTS, top_k=K)
    assert engine.rank(QUERY, DOCUMENTS, top_k=K, batch_tokens=30, batch_size=2) == ranked
    order = np.random.default_rng(0).permutation(len(DOCUMENTS))
    moved = engine.rank(QUERY, [DOCUMENTS[i] for i in order], top_k=K)
    assert [(int(order[one["index"]]), one["score"]) for one in moved] == [
        (one["index"], one["score"]) for one in ranked
    ]
    for same in (pickle.loads(pickle.dumps(engine)), copy.copy(engine), copy.deepcopy(engine)):
        assert same.rank(QUERY, DOCUMENTS, top_k=K) == ranked


def test_where_the_margins_have_no_say(engine: pfengine.Engine, checkpoint: Path) -> None:
    by_pair = engine.rank(QUERY, DOCUMENTS)
    assert {one["exit_layer"] for one in by_pair} > {5}, "patience lets pairs leave"
    full = engine.rank(QUERY, DOCUMENTS, criterion="never")
    assert {one["exit_layer"] for one in full} == {5}
    precision = engine.precision
    for told in ({"criterion": "never"}, {"threshold": 3}, {"criterion": "patience:2,0.8"}):
        of_call = engine.rank(QUERY, DOCUMENTS, top_k=K, **told)  # type: ignore[arg-type]
        loaded = pfengine.load(checkpoint, precision=precision, **told)  # type: ignore[arg-type]
        for other in (loaded, pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
            assert other.rank(QUERY, DOCUMENTS, top_k=K) == of_call
    assert engine.rank(QUERY, DOCUMENTS, top_k=K, criterion="never") == full[:K]
    own = [{"text": document, "threshold": 2.0} for document in DOCUMENTS]
    assert engine.rank(QUERY, own, top_k=K) == by_pair[:K]
    with pytest.warns(UserWarning, match="top_k is 7, and .* was calibrated for the best 4: no document leaves early"):
        assert engine.rank(QUERY, DOCUMENTS, top_k=7) == full[:7]


@pytest.mark.parametrize("count", [0, 1, K - 1, K, K + 1])
def test_few_documents(engine: pfengine.Engine, count: int) -> None:
    ranked = engine.rank(QUERY, DOCUMENTS[:count], top_k=K)
    layers, order = simulated(engine, DOCUMENTS[:count]) if count else (np.empty(0), np.empty(0))
    assert [one["index"] for one in ranked] == order[:K].tolist()
    assert count > K or (layers == 5).all()


def test_a_bad_document_costs_itself_alone(engine: pfengine.Engine) -> None:
    good = engine.rank(QUERY, DOCUMENTS, top_k=K)
    found = engine.rank(QUERY, [3, *DOCUMENTS, None], top_k=K, on_error="return")
    assert [one["index"] - 1 for one in found[:K]] == [one["index"] for one in good]
    assert [one["score"] for one in found[:K]] == [one["score"] for one in good]
    assert [one["row"] for one in found[K:]] == [0, 41]
    with pytest.raises(pfengine.InputError, match="row 0"):
        engine.rank(QUERY, [3, *DOCUMENTS], top_k=K)
    with pytest.warns(UserWarning, match="1 of 41 rows had more than 64 tokens"):
        engine.rank(QUERY, [*DOCUMENTS, "good film " * 50], top_k=K)
    assert engine.rank(QUERY, ["good film " * 50], top_k=K, truncation="error", on_error="return")[0]["row"] == 0


def test_equal_documents_stay_together(engine: pfengine.Engine) -> None:
    ranked = engine.rank(QUERY, ["good"] * 9, top_k=K)
    assert [one["index"] for one in ranked] == [0, 1, 2, 3]


def test_a_document_without_an_answer_lets_no_other_go(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores are nan after every exit, as where its numbers overflow."""
    engine = pfengine.load(checkpoint, precision="fp32")
    seen: list[int] = []
    leave = TopK.leave

    def broken(rule: TopK, number: int, scores: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        scores[0] = np.nan
        gone = leave(rule, number, scores)
        assert not gone[0]
        seen.append(int(gone.sum()))
        return gone

    monkeypatch.setattr(TopK, "leave", broken)
    engine.rank(QUERY, DOCUMENTS, top_k=K)
    assert sum(seen) > 0


def test_too_many_documents_for_a_flight(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pfengine.load(checkpoint, precision="fp32")
    monkeypatch.setattr(type(engine.model.carrier), "max_rows", 10)
    with pytest.raises(pfengine.ConfigError, match="there are 40 documents, and at most 10 of a query can be ranked"):
        engine.rank(QUERY, DOCUMENTS, top_k=K)
    assert len(engine.rank(QUERY, DOCUMENTS, top_k=K, criterion="never")) == K


@pytest.mark.parametrize("margins", [[0.1] * 3, [0.1] * 5, [-0.1] * 4, ["a"] * 4, 3, [math.inf] * 4])
def test_margins_that_do_not_fit_are_named(checkpoint: Path, tmp_path: Path, margins: Any) -> None:
    path = with_margins(shutil.copytree(checkpoint, tmp_path / "wrong"), margins=margins)
    with pytest.raises(pfengine.CheckpointError, match=r"pfengine.json.*'ranking' is .*'margins'|JSON"):
        pfengine.load(path)


def test_no_warning_where_the_margins_decide(checkpoint: Path) -> None:
    engine = pfengine.load(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(engine.rank(QUERY, DOCUMENTS, top_k=K)) == K
