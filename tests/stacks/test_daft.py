"""Daft runs our class over a data frame."""

from __future__ import annotations

from pathlib import Path

import pfengine

from .conftest import TEXTS, blocks, needs, run_python

pytestmark = needs("daft")


def test_the_page(tmp_path: Path) -> None:
    (code,) = blocks("daft", "python")
    assert run_python(code, tmp_path).strip() == "['positive', 'negative']"


def test_answers_are_the_engine_s_and_a_bad_row_fails_alone(engine: pfengine.Engine) -> None:
    import daft

    from pfengine.stacks.daft import Classifier

    texts = daft.from_pydict({"id": list(range(3000)), "text": [*TEXTS[:2], None] * 1000})
    classify = Classifier("sst2", {"precision": "fp32"})
    found = texts.with_column("answer", classify(texts["text"])).sort("id").to_pydict()["answer"]
    expected = engine.classify(TEXTS[:2])
    for i, answer in enumerate(found):
        if i % 3 == 2:
            assert answer["error"]
            assert (answer["label"], answer["exit_layer"]) == ("", 0)
        else:
            assert answer["error"] == ""
            assert {name: answer[name] for name in ("label", "score", "exit_layer")} == expected[i % 3]
