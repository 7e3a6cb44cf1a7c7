"""Spark runs our function over a data frame, in Python workers of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pfengine

from .conftest import TEXTS, blocks, needs, run_python

pytestmark = [needs("pyspark"), pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")]

BOTH = """
import json
from pyspark.sql import SparkSession
from pfengine.stacks.spark import classifier

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
texts = spark.createDataFrame(json.loads(ROWS), "id long, text string, other string").repartition(3)
one = classifier("sst2", precision="fp32", batch_size=16)
two = classifier("sst2", precision="fp32", batch_size=16, pairs=True)
found = texts.withColumn("one", one("text")).withColumn("pair", two("text", "other"))
print("found", json.dumps([[row.id, list(row.one), list(row.pair)] for row in found.collect()]))
"""


def test_the_page(tmp_path: Path) -> None:
    (code,) = blocks("spark", "python")
    assert run_python(code, tmp_path).strip().splitlines()[-1] == "['positive', 'negative']"


def test_answers_are_the_engine_s_and_a_bad_row_fails_alone(engine: pfengine.Engine, tmp_path: Path) -> None:
    rows = [[i, (*TEXTS, None)[i % 4], TEXTS[i % 3]] for i in range(100)]
    printed = run_python(BOTH.replace("ROWS", repr(json.dumps(rows))), tmp_path)
    found = json.loads(printed.rpartition("found ")[2])
    assert sorted(each[0] for each in found) == list(range(100))
    for i, *answers in found:
        for row, (label, score, layer, error) in zip((rows[i][1], tuple(rows[i][1:])), answers, strict=True):
            if rows[i][1] is None:
                assert (label, layer, score) == ("", 0, None)
                assert error
            else:
                (expected,) = engine.classify([row])
                assert (label, layer, error) == (expected["label"], expected["exit_layer"], "")
                assert score == pytest.approx(expected["score"], abs=1e-7)
