"""What labels mean: one mapping, whatever they look like, or a refusal that names the first row that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pfengine
from pfengine import data
from pfengine.data import Example


def examples(*labels: str | None) -> list[Example]:
    return [Example("a", None, label) for label in labels]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([str(i) for i in range(10, 0, -1)], [str(i) for i in range(1, 11)]),
        (["1", "0", "1"], ["0", "1"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1", "-1", "0", "-10"], ["-10", "-1", "0", "1"]),
        (["a", "1"], ["1", "a"]),
        (["very good", "so so", "10"], ["10", "so so", "very good"]),
        (["01", "1", "2"], ["01", "1", "2"]),
        (["True", "False"], ["False", "True"]),
        (["nan", "1"], ["1", "nan"]),
        (["1" * 400, "2"], ["1" * 400, "2"]),
    ],
    ids=lambda value: ",".join(value)[:20],
)
def test_names_are_those_in_the_data_and_read_as_themselves(found: list[str], names: list[str]) -> None:
    labels = data.names_of(found)
    assert list(labels) == names
    assert [labels[i] for i in data.label_ids(examples(*found), labels, "f")] == found


def test_integers_written_as_floats_are_classes_and_said() -> None:
    with pytest.warns(UserWarning, match=r"read as classes: 1 for 1.0, 10 for 10.0, 2 for 2.0; in a file of scores"):
        assert data.names_of(["10.0", "1.0", "2.0", "2"]) == ("1", "2", "10")
    assert data.names_of(["1.0", "2.5"]) == ()
    assert data.names_of(["1.0", "beta"]) == ("1.0", "beta")


@pytest.mark.parametrize(
    ("labels", "found", "ids"),
    [
        (("1", "2", "3"), ("3.0", "1.0", "3.0"), [2, 0, 2]),
        (("1", "2", "3"), ("3", "1.0"), [2, 0]),
        (("3", "2", "1"), ("1", "3"), [2, 0]),
        (("0", "1"), ("1", "0"), [1, 0]),
        (("1", "0"), ("1", "0"), [0, 1]),
        (("a", "1"), ("1", "1"), [1, 1]),
        (("false", "true"), ("True", "False"), [1, 0]),
        (("False", "True"), ("true",), [1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("2", "0"), [2, 0]),
        (("LABEL_0", "LABEL_1"), ("1.0", "0.0"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("LABEL_1",), [1]),
        (("LABEL_1", "LABEL_10", "LABEL_2"), ("10", "2", "1"), [1, 2, 0]),  # as earlier versions named 1, 10 and 2
        (("negative", "positive"), ("0", "1"), [0, 1]),
        (("negative", "positive"), ("positive", "negative"), [1, 0]),
        (("class_0", "class_1", "h1n1"), ("2", "0"), [2, 0]),
        (("1 star", "2 stars"), ("2 stars", "1 star"), [1, 0]),
        (("so so", " very good"), ("very good",), [1]),
    ],
)
def test_names_come_before_ids(labels: tuple[str, ...], found: tuple[str, ...], ids: list[int]) -> None:
    assert data.label_ids(examples(*found), labels, "f") == ids


@pytest.mark.parametrize(
    ("labels", "found", "message"),
    [
        (("1", "2", "3"), ("1", "2", "0"), "f, row 2: label '0' is not one of 1, 2, 3$"),
        (("1", "2", "3"), ("0",), "f, row 0: label '0' is not one of 1, 2, 3$"),
        (("a", "1"), ("0", "1"), "row 0: label '0' is not one of a, 1$"),
        (("LABEL_1", "LABEL_2"), ("1", "0"), "row 1: label '0' is not one of LABEL_1, LABEL_2$"),
        (
            ("no", "yes"),
            ("1", "no"),
            "row 0: label '1' is not one of no, yes, while row 1 has 'no'; label all rows by name",
        ),
        (("1 star", "2 stars", "3 stars"), ("1", "2"), "row 0: label '1' is not one of 1 star, 2 stars, 3 stars$"),
        (("class 1", "class 2"), ("0", "1"), "row 0: label '0' is not one of class 1, class 2$"),
        (("no", "yes"), ("1", "2"), "row 1: label '2' is not one of no, yes$"),
        (("no", "yes"), ("True", "False"), "row 0: label 'True' is not one of no, yes$"),
        (("no", "yes"), ("No",), "row 0: label 'No' is not one of no, yes$"),
        (("no", "yes"), ("1", "-1"), "row 1: label '-1' is not one of no, yes: the rows are not labelled"),
        (("1", "1.0"), ("1.00",), "row 0: label '1.00' is not one of 1, 1.0$"),
    ],
)
def test_what_does_not_fit_is_named(labels: tuple[str, ...], found: tuple[str, ...], message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        data.label_ids(examples(*found), labels, "f")


def test_rows_without_labels_and_scores_that_are_none() -> None:
    with pytest.raises(pfengine.ConfigError, match="f has no column with labels"):
        data.label_ids(examples(None), ("no", "yes"), "f")
    with pytest.raises(pfengine.ConfigError, match="row 1: label 'nan' is not a finite number"):
        data.scores(examples("1.5", "nan"), "f")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("values", [[True, False], [1, 2], [1.0, 2.5], [" spaced ", "b"]], ids=repr)
def test_labels_are_the_same_text_in_every_kind_of_file(tmp_path: Path, kind: str, values: list) -> None:
    file = tmp_path / f"x.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": values}), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"text": text, "label": v}) + "\n" for text, v in zip("ab", values)))  # noqa: B905
    else:
        cut = "," if kind == "csv" else "\t"
        file.write_text(f"text{cut}label\n" + "".join(f"{text}{cut}{v}\n" for text, v in zip("ab", values)))  # noqa: B905
    assert [example.label for example in data.read(file)] == [str(value).strip() for value in values]
