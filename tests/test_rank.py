"""`Engine.rank`: documents by their score for a query, each leaving at its own layer."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.inference import Answered

from .conftest import ROOT, WORDS

Make = Callable[..., Path]
QUERY = "is the film very good"
DOCUMENTS = [" ".join(np.random.default_rng(i).choice(WORDS[:18], 3 + i % 9)) for i in range(24)]


def sure(layer: int, logits: Any, state: Any, row_ids: Any) -> Any:
    return logits[:, 0].abs() > 1, state


@pytest.fixture(scope="module")
def engine(make_text_checkpoint: Make) -> pfengine.Engine:
    """Its scores are the logits."""
    how = {"criterion": "patience:,0.8", "threshold": 2.0, "config": {"problem_type": "regression"}}
    return pfengine.load(make_text_checkpoint(labels=1, head="linear", **how), precision="fp32")


@pytest.fixture(scope="module", params=["regression", "sigmoid"])
def any_engine(request: pytest.FixtureRequest, engine: pfengine.Engine, make_text_checkpoint: Make) -> pfengine.Engine:
    if request.param == "regression":
        return engine
    made = make_text_checkpoint(labels=1, head="linear", criterion="never")
    return pfengine.load(made, precision="fp32", criterion=sure)


def test_best_first_with_scores_and_exits_as_classify_has_them(any_engine: pfengine.Engine) -> None:
    ranked = any_engine.rank(QUERY, DOCUMENTS)
    by_hand = any_engine.classify([(QUERY, document) for document in DOCUMENTS])
    logits = any_engine.predict([(QUERY, document) for document in DOCUMENTS]).logits[:, 0]
    assert [one["index"] for one in ranked] == np.argsort(-logits, kind="stable").tolist()
    for one in ranked:
        assert one == {key: by_hand[one["index"]][key] for key in ("score", "exit_layer")} | {"index": one["index"]}
    assert len({one["exit_layer"] for one in ranked}) > 1
    regression = any_engine.model.config.problem_type == "regression"
    assert all(0 < one["score"] < 1 for one in ranked) != regression
    assert list(ranked[0]) == ["index", "score", "exit_layer"]


def test_activation_changes_scores_and_not_the_order(any_engine: pfengine.Engine) -> None:
    raw, sigmoid = (any_engine.rank(QUERY, DOCUMENTS, activation=how) for how in ("none", "sigmoid"))
    assert [one["index"] for one in raw] == [one["index"] for one in sigmoid]
    for one, other in zip(raw, sigmoid, strict=True):
        assert other["score"] == pytest.approx(1 / (1 + np.exp(-one["score"])), abs=1e-6)
    default = raw if any_engine.model.config.problem_type == "regression" else sigmoid
    assert any_engine.rank(QUERY, DOCUMENTS) == default


def test_top_k_documents_in_every_form_and_knobs(engine: pfengine.Engine) -> None:
    ranked = engine.rank(QUERY, DOCUMENTS)
    assert engine.rank(QUERY, DOCUMENTS, top_k=3) == ranked[:3]
    assert engine.rank(QUERY, DOCUMENTS, top_k=99) == ranked
    assert engine.rank(QUERY, ({"text": text, "id": i} for i, text in enumerate(DOCUMENTS))) == ranked
    shown = engine.rank(QUERY, [{"text": DOCUMENTS[0]}, *DOCUMENTS[1:]], top_k=5, return_documents=True)
    assert shown == [one | {"text": DOCUMENTS[one["index"]]} for one in ranked[:5]]
    assert engine.rank(QUERY, ("good", "bad")) == engine.rank(QUERY, ["good", "bad"])  # two documents, not a pair
    full = engine.rank(QUERY, DOCUMENTS, criterion="never")
    assert {one["exit_layer"] for one in full} == {5}
    own = [{"text": text, "threshold": 1 + i % 3} for i, text in enumerate(DOCUMENTS)]
    beside = engine.rank(QUERY, DOCUMENTS, threshold=[1 + i % 3 for i in range(len(DOCUMENTS))])
    assert engine.rank(QUERY, own) == beside != ranked
    assert engine.rank(QUERY, DOCUMENTS, batch_size=1) == engine.rank(QUERY, DOCUMENTS, batch_tokens=40) == ranked
    assert engine.rank(QUERY, [""])[0]["score"] == engine.classify(QUERY)[0]["score"]
    assert pickle.loads(pickle.dumps(engine)).rank(QUERY, DOCUMENTS) == ranked


def test_equal_documents_keep_their_order_and_large_logits_are_told_apart(
    engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [one["index"] for one in engine.rank(QUERY, ["good", "bad", "good", "good", "bad"])]
    assert places in ([0, 2, 3, 1, 4], [1, 4, 0, 2, 3])
    given = engine.model.num_layers

    def answered(*_: Any) -> Iterator[Answered]:
        rows = engine.tokenizer.encode(enumerate([(QUERY, text) for text in DOCUMENTS[:3]]))
        yield Answered(rows, np.float32([[20], [30], [25]]), np.array([given] * 3))

    monkeypatch.setattr("pfengine.ranking.answered", answered)
    ranked = engine.rank(QUERY, DOCUMENTS[:3], activation="sigmoid")
    assert [one["index"] for one in ranked] == [1, 2, 0]
    assert {one["score"] for one in ranked} == {1.0}


def test_nothing_to_rank(engine: pfengine.Engine) -> None:
    assert engine.rank(QUERY, []) == engine.rank(QUERY, iter(())) == []
    with pytest.raises(pfengine.ConfigError, match="not both"):
        engine.rank(QUERY, [], threshold=2, speedup=2)


BAD: list[tuple[Any, str]] = [
    (3, "is of type int; a document is a string"),
    (None, "is of type NoneType"),
    (("a", "b"), "is a tuple; a document is one text"),
    ({"text": 3}, "is a dict without a string as 'text'"),
    ({"input_ids": [1, 2]}, "is a dict without a string as 'text'"),
    ({"text": "a", "text_pair": "b"}, "has 'text' and 'text_pair'"),
    ({"text": "a", "threshold": "x"}, "threshold is 'x'"),
    ({"text": "a", "threshold": 2, "speedup": 2}, "has 'threshold' and 'speedup'"),
]


@pytest.mark.parametrize(("document", "said"), BAD)
def test_a_bad_document_costs_itself_alone(engine: pfengine.Engine, document: Any, said: str) -> None:
    good = engine.rank(QUERY, ["good", "", "bad"])
    found = engine.rank(QUERY, ["good", document, "bad"], on_error="return")
    assert [one["score"] for one in found[:2]] == [one["score"] for one in good if one["index"] != 1]
    assert found[2]["row"] == 1
    assert said in found[2]["error"]
    assert engine.rank(QUERY, ["good", document, "bad"], on_error="return", top_k=1) == [found[0], found[2]]
    with pytest.raises(pfengine.InputError, match="row 1"):
        engine.rank(QUERY, ["good", document])


def test_long_documents_are_cut_with_a_warning_or_refused(engine: pfengine.Engine) -> None:
    long = "good film " * 50
    with pytest.warns(UserWarning, match="1 of 2 rows had more than 64 tokens"):
        assert len(engine.rank(QUERY, [long, "bad"])) == 2
    assert engine.rank(QUERY, [long, "bad"], truncation="error", on_error="return")[1]["row"] == 0


@pytest.mark.parametrize(("arguments", "options", "said"), [
    ((QUERY, "one text"), {}, "documents is of type str; give a list"),
    ((QUERY, {"text": "a"}), {}, "documents is of type dict"),
    ((QUERY, 3), {}, "documents is of type int"),
    ((QUERY, {"a", "b"}), {}, "a set, which has no order"),
    ((3, ["a"]), {}, "query is of type int; it must be a string"),
    ((QUERY, ["a"]), {"top_k": 0}, "top_k is 0"),
    ((QUERY, ["a"]), {"on_error": "skip"}, "on_error is 'skip'"),
    ((QUERY, ["a"]), {"activation": "softmax"}, "activation is 'softmax'"),
])  # fmt: skip
def test_wrong_use(engine: pfengine.Engine, arguments: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=said):
        engine.rank(*arguments, **options)


def test_other_models_are_refused(sst2: pfengine.Engine, make_text_checkpoint: Make) -> None:
    with pytest.raises(pfengine.ConfigError, match="has 2 labels and does not rank documents"):
        sst2.rank(QUERY, DOCUMENTS)
    tagger = pfengine.load(make_text_checkpoint(labels=1, head={"type": "tagger"}, criterion="never"))
    with pytest.raises(pfengine.ConfigError, match="tags words and does not rank documents"):
        tagger.rank(QUERY, DOCUMENTS)


def test_a_cascade_says_which_model_answered(make_text_checkpoint: Make, tmp_path: Path) -> None:
    parts = [make_text_checkpoint(labels=1, head="classifier", seed=seed) for seed in (0, 1)]
    engine = pfengine.load(pfengine.cascade(parts, tmp_path / "out", criterion="never"), precision="fp32")
    middle = float(np.median(engine.layer_logits([(QUERY, document) for document in DOCUMENTS])[0]))

    def gate(layer: int, logits: Any, state: Any, row_ids: Any) -> Any:
        return logits[:, 0] > middle, state

    ranked = engine.rank(QUERY, DOCUMENTS, criterion=gate)
    rows = engine.classify([(QUERY, document) for document in DOCUMENTS], criterion=gate)
    assert {one["model"] for one in ranked} == {1, 2}
    for one in ranked:
        assert one == {key: rows[one["index"]][key] for key in ("score", "exit_layer", "model")} | {
            "index": one["index"]
        }


def test_the_lines_of_the_page_run_as_written(
    make_text_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/serving/rank.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 5
    shutil.copytree(make_text_checkpoint(labels=1, head="linear", criterion="never"), tmp_path / "cross-encoder")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert [one["text"] for one in names["ranked"]] == [names["documents"][one["index"]] for one in names["ranked"]]
    assert len(names["ranked"]) == 2
    assert names["best"] == names["ranked"][0]["text"]
