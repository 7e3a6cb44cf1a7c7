"""Apache Beam's RunInference with our model handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pfengine

from .conftest import TEXTS, blocks, needs, run_python

pytestmark = needs("apache_beam")


def test_the_page(tmp_path: Path) -> None:
    (code,) = blocks("beam", "python")
    lines = run_python(code, tmp_path).strip().splitlines()
    assert sorted(lines) == ["a charming journey positive", "dull negative"]


def test_answers_are_the_engine_s_and_a_bad_row_fails_alone(engine: pfengine.Engine) -> None:
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.testing.util import assert_that

    from pfengine.stacks.beam import Classifier

    rows: list[Any] = [TEXTS[0], (TEXTS[1], TEXTS[2]), {"text": TEXTS[2], "threshold": 0}, 7]
    expected = {
        str(row): answer for row, answer in zip(rows, engine.classify(rows[:3], speedup=[2, 2, 2]), strict=False)
    }

    def check(found: list[Any]) -> None:
        answers = {str(each.example): each.inference for each in found}
        assert "must be a string" in answers.pop("7")["error"]
        assert answers == expected

    with beam.Pipeline() as pipeline:
        found = (
            pipeline
            | beam.Create(rows, reshuffle=False)
            | RunInference(Classifier("sst2", precision="fp32"), inference_args={"speedup": 2})
        )
        assert_that(found, check)


def test_options_that_are_refused() -> None:
    from pfengine.stacks.beam import Classifier

    with pytest.raises(pfengine.ConfigError, match="there is no option 'treshold'"):
        Classifier("sst2", treshold=1)
    with pytest.raises(pfengine.ConfigError, match="inference_args has 'treshold'"):
        Classifier("sst2").validate_inference_args({"treshold": 1})
