"""Every form a row may come in is read right or refused with a hint, and costs at most itself."""

from __future__ import annotations

import array
import collections
import io
import itertools
import os
import random
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pfengine
from pfengine.rows import Row, Text, parse, rows_of, size

IDS = [5, 6, 7]


def ids_of(value: Any) -> list[int]:
    row = parse(0, value)
    assert isinstance(row, Row)
    assert row.ids.dtype == np.int64
    return row.ids.tolist()


class Letters(str):
    def encode(self, *arguments: Any) -> bytes:
        raise ValueError("not today")


@pytest.mark.parametrize(
    "ids",
    [
        IDS, tuple(IDS), np.array(IDS), np.array(IDS, np.uint8), np.array(IDS, np.int32), [np.int64(i) for i in IDS],
        [np.int32(5), 6, np.uint8(7)], torch.tensor(IDS), [torch.tensor(i) for i in IDS], array.array("i", IDS),
        range(5, 8), collections.deque(IDS), [IDS], np.array([IDS]), torch.tensor([IDS]), collections.UserList(IDS),
    ],
    ids=lambda ids: f"{type(ids).__name__} {ids}",
)  # fmt: skip
def test_ids_of_any_kind_of_integers(ids: Any) -> None:
    assert ids_of({"input_ids": ids}) == IDS
    assert ids_of({"input_ids": ids, "attention_mask": [1, 1, 0]}) == IDS[:2]


@pytest.mark.parametrize("mask", [[1, 1, 0], np.array([1, 1, 0]), np.array([True, True, False]), [True, True, False],
                                  torch.tensor([[1, 1, 0]]), (1, 1, 0)], ids=repr)  # fmt: skip
def test_padding_is_cut_off(mask: Any) -> None:
    row = parse(3, {"input_ids": IDS, "token_type_ids": [0, 1, 0], "attention_mask": mask})
    assert isinstance(row, Row)
    assert (row.row_id, row.ids.tolist(), row.types is not None and row.types.tolist()) == (3, [5, 6], [0, 1])


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1], [0, 0, 0], [2, 1, 0], [-1, 1, 0]])
def test_a_mask_that_is_not_padding_at_the_end_is_refused(mask: list[int]) -> None:
    with pytest.raises(pfengine.InputError, match="row 0: 'attention_mask' must be 1 for"):
        parse(0, {"input_ids": IDS, "attention_mask": mask})


def test_encodings_of_hugging_face_tokenizers_answer_as_their_texts(text_checkpoint: Path) -> None:
    engine = pfengine.load(text_checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_checkpoint)
    rows: list[Any] = ["the film is good", ("very bad", "the journey"), "it 's slow"]
    given = [(row,) if isinstance(row, str) else row for row in rows]
    expected = engine.classify(rows)
    assert engine.classify([tokenizer(*texts) for texts in given]) == expected
    assert engine.classify([tokenizer(*texts, return_tensors="pt") for texts in given]) == expected
    padded = [tokenizer(*texts, padding="max_length", max_length=20, return_tensors="np") for texts in given]
    assert engine.classify(padded) == expected
    assert engine.classify([dict(encoding) | {"label": 1} for encoding in padded]) == expected
    assert engine.classify(tokenizer(rows[0])) == expected[:1]
    with pytest.raises(pfengine.InputError, match="'input_ids' holds 2 rows; give a dict for each row"):
        engine.classify(tokenizer([rows[0], rows[2]], padding=True, return_tensors="np"))


RECORDS: list[tuple[Any, Text]] = [
    ({"text": "a", "label": 1}, Text("a", None)), ({"text": "a", "text_pair": "b", "idx": 3}, Text("a", "b")),
    ({"text": "a", "label": "sentence", "meta": {"x": []}}, Text("a", None)),
    ({"text": "a", "text_pair": None}, Text("a", None)), (collections.UserDict({"text": "a", 5: 6}), Text("a", None)),
    (types.MappingProxyType({"text": "a"}), Text("a", None)),
    (np.str_("a"), Text("a", None)), (Letters("a"), Text("a", None)), ((Letters("a"), np.str_("b")), Text("a", "b")),
]  # fmt: skip


@pytest.mark.parametrize(("record", "text"), RECORDS, ids=lambda value: repr(value))
def test_records_and_strings_of_any_kind(record: Any, text: Text) -> None:
    found = parse(0, record)
    assert found == text
    assert type(found[0]) is str


REFUSED: list[tuple[Any, str]] = [
    ({"text": ["a", "b"]}, "'text' is of type list; it must be a string; give a dict for each row"),
    ({"text": "a", "sentence2": "b"}, "has 'text' and 'sentence2'; the second text of a pair goes by 'text_pair'"),
    ({"text": "a", "pair": "b", "label": 1}, "goes by 'text_pair'"),
    ({"sentence": "a", "label": 1}, r"is a dict with the keys \['label', 'sentence'\]; a row is"),
    ({"text": float("nan")}, "'text' is of type float"),
    ({"text": "a", "input_ids": IDS}, "has 'input_ids' and 'text'"),
    ({"input_ids": IDS, "position_ids": IDS}, "has 'input_ids' and 'position_ids'"),
    ({"input_ids": [IDS, IDS]}, "'input_ids' holds 2 rows; give a dict for each row"),
    ({"input_ids": torch.tensor([IDS, IDS])}, "'input_ids' holds 2 rows; give a dict for each row"),
    ({"input_ids": IDS, "attention_mask": [1]}, "has 3 input_ids but 1 attention_mask"),
    ({"input_ids": [5.0]}, "'input_ids' must be a flat sequence of integers"),
    ({"input_ids": np.array([5.0])}, "'input_ids' must be"), ({"input_ids": [True]}, "'input_ids' must be"),
    ({"input_ids": [2**70]}, "'input_ids' must be"), ({"input_ids": b"abc"}, "'input_ids' must be"),
    ({"input_ids": bytearray(b"abcdefgh")}, "'input_ids' must be"), ({"input_ids": {5}}, "'input_ids' must be"),
    ({"input_ids": itertools.count()}, "'input_ids' must be"), ({"input_ids": {"a": 5}}, "'input_ids' must be"),
    ({"input_ids": [[[5]]]}, "'input_ids' must be"), ({"input_ids": np.zeros((1, 1, 2), int)}, "'input_ids' must be"),
    ({"input_ids": [[]]}, "'input_ids' is empty"), ({"input_ids": np.array([])}, "'input_ids' is empty"),
    (b"text", "is of type bytes; decode it to a string first"), (np.bytes_(b"x"), "decode it"),
    (bytearray(b"x"), "decode it"), (["a", "b"], "is of type list; a row is"), (np.array(["a"]), "is of type ndarray"),
    (None, "is of type NoneType; a row is"), (float("nan"), "is of type float; a row is"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=lambda value: repr(value)[:60])
def test_what_is_no_row_is_refused_with_a_hint(row: Any, message: str) -> None:
    with pytest.raises(pfengine.InputError, match=f"^row 4: .*{message}"):
        parse(4, row)


class DataFrame:  # as pandas and polars have it
    columns = ("text", "label")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class GeoDataFrame(DataFrame):
    pass


class Series:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        (DataFrame(), "DataFrame, which iterates over columns; give the texts of one, df"),
        (GeoDataFrame(), "GeoDataFrame, which iterates over columns"),
        ({"a", "b"}, "is a set, which has no order"), (frozenset(["a"]), "is a set"),
        (io.StringIO("a\nb\n"), "is an open file, whose lines end in line breaks"), (io.BytesIO(b"a\n"), "open file"),
        (tempfile.SpooledTemporaryFile(mode="w"), "open file"),  # noqa: SIM115
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_iterates_over_something_else_than_rows_is_refused(text_checkpoint: Path, inputs: Any, hint: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=hint):
        rows_of(inputs)
    engine = pfengine.load(text_checkpoint)
    for call in (engine.classify, engine.predict, engine.layer_logits, lambda rows: list(engine.stream(rows))):
        with pytest.raises(pfengine.ConfigError, match=hint):
            call(inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        ["a", "b"], ("a", "b", "c"), np.array(["a", "b"]), np.array(["a", "b"], object), Series(["a", "b"]),
        collections.deque(["a"]), dict.fromkeys("ab").keys(), (text for text in "ab"), [{"text": "a", "label": 0}],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_iterables_of_rows(inputs: Any) -> None:
    assert all(isinstance(parse(i, row), Text) for i, row in enumerate(rows_of(inputs)))


@pytest.mark.parametrize(
    "single", ["a", ("a", "b"), {"text": "a"}, {"text": ["a", "b"]}, b"a", bytearray(b"a"), 5, None]
)
def test_one_row_is_a_list_of_one(single: Any) -> None:
    assert list(rows_of(single)) == [single]


class Bad:
    """An object of which one method, or all, raise; it iterates without end where it does not."""

    def __init__(self, error: type[Exception], *methods: str) -> None:
        def fail(*_: Any) -> Any:
            raise error("no")

        body: dict[str, Any] = {
            "__len__": lambda self: 10**12, "__getitem__": lambda self, i: 1, "__contains__": lambda self, key: True,
            "__iter__": lambda self: itertools.repeat("input_ids"), "get": lambda self, key, default=None: 1,
        }  # fmt: skip
        self.body = body | dict.fromkeys(methods, fail)

    def made(self, *bases: type) -> Any:
        return object.__new__(type("Made", bases, self.body)) if not bases else type("Made", bases, self.body)()


METHODS = ("__len__", "__iter__", "__getitem__", "__array__", "__contains__", "__index__", "__class__", "keys", "get",
           "values", "__str__", "__repr__", "__eq__", "__hash__", "__bool__")  # fmt: skip


def bad_value(draw: random.Random, depth: int = 0) -> Any:
    """Something that is no row, or no ids: shapes and methods drawn at random."""
    kind = draw.randrange(16)
    if kind == 0:
        return range(-(10**30), 10 ** draw.choice([3, 30]))
    if kind == 1:
        return draw.choice([itertools.count, lambda: iter([1]), lambda: (i for i in "ab"), lambda: map(int, "12")])()
    if kind == 2:
        return draw.choice([2**70, -(2**70), 1.0, float("inf"), float("nan"), 1 + 2j, Ellipsis, None, True, object()])
    if kind == 3:
        return [draw.choice([2**70, 1.0, float("nan"), None, "5", True, [], 10**400, -1])] * draw.randrange(1, 4)
    if kind == 4:
        shape = [draw.randrange(3) for _ in range(draw.randrange(4))]
        return np.zeros(shape, draw.choice([float, complex, object, "U3", "S3", "M8[s]", bool, np.float16]))
    if kind == 5:
        return torch.zeros([draw.randrange(1, 3) for _ in range(draw.randrange(4))], dtype=torch.float16)
    if kind == 6:
        return memoryview(b"abcdefgh")
    if kind in (7, 8, 9):
        methods = draw.sample(METHODS, draw.randrange(1, 5))
        if "__class__" in methods:
            return type("Made", (), {"__class__": property(lambda self: 1 / 0)})()
        error = draw.choice(
            [ValueError, TypeError, OverflowError, MemoryError, RecursionError, StopIteration, KeyError]
        )
        return Bad(error, *methods).made(
            *draw.choice([(), (list,), (tuple,), (dict,), (str,), (Mapping,), (Sequence,)])
        )
    if kind == 10 and depth < 3:
        return [bad_value(draw, depth + 1) for _ in range(draw.randrange(1, 3))]
    if kind == 11 and depth < 3:
        return (bad_value(draw, depth + 1), "text")
    nested: list[Any] = []
    for _ in range(draw.choice([1, 50, 5000])):
        nested = [nested]
    return (
        nested if kind == 12 else {draw.choice(["text", "input_ids", 5, None]): nested if depth else bad_value(draw, 1)}
    )


def bad_row(draw: random.Random) -> Any:
    value = bad_value(draw)
    match draw.randrange(6):
        case 0:
            return value
        case 1:
            return {"text": value}
        case 2:
            return {"text": "good", "text_pair": value}
        case 3:
            return {"input_ids": value}
        case 4:
            return {"input_ids": [5, 6], draw.choice(["token_type_ids", "attention_mask"]): value}
    return {"input_ids": value, "token_type_ids": value, "attention_mask": value, "label": value}


@pytest.mark.fuzz
def test_no_row_touches_another(text_checkpoint: Path) -> None:
    """Rows that hold anything, and whose methods do anything, among good ones."""
    engine = pfengine.load(text_checkpoint)
    good: list[Any] = ["the film is good", ("very bad", "a journey"), {"input_ids": [5, 6, 7]}, {"text": "slow"}]
    alone = [engine.classify(row)[0] for row in good]
    draw = random.Random(1)
    refused = 0
    cases = int(os.environ.get("PFENGINE_FUZZ_CASES", "600"))
    for _ in range(max(1, cases // 25)):
        rows, kinds = [], []
        for _ in range(25):
            kind = draw.randrange(len(good)) if draw.random() < 0.3 else None
            kinds.append(kind)
            rows.append(bad_row(draw) if kind is None else good[kind])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows without end are truncated
            answers = engine.classify(rows, on_error="return", batch_tokens=draw.choice([8, 64, 4096]))
        assert len(answers) == len(rows)
        for i, (kind, answer) in enumerate(zip(kinds, answers, strict=True)):
            if kind is not None:
                assert answer == alone[kind]
            elif "error" in answer:
                refused += 1
                assert answer["row"] == i
                assert "\n" not in answer["error"]
    assert refused > 0.4 * cases


def test_what_cannot_be_measured_has_size_0() -> None:
    for error in (ValueError, TypeError, OverflowError):
        assert size(Bad(error, "__len__", "values").made()) == 0
    assert size("four") == size({"text": "four", "label": 1}) == size(("fo", "ur")) == size({"input_ids": [1] * 4}) == 4


WRONG_WORDS = {
    "'words' is of type str; it must be a list of strings": {"words": "the film"},
    "'words' has at 1 what is of type int": {"words": ["a", 3]},
    "has 'words' and 'text'": {"words": ["a"], "text": "a"},
    "has 'input_ids' and 'words'": {"input_ids": IDS, "words": ["a"]},
    "has 'first_pieces' but no 'pieces'": {"input_ids": IDS, "first_pieces": [0]},
    "has 'pieces' but no 'first_pieces'": {"input_ids": IDS, "pieces": [1]},
    "has 2 first_pieces but 1 pieces": {"input_ids": IDS, "first_pieces": [0, 1], "pieces": [1]},
    "'pieces' is 0 for word 1; every word has at least 1": {
        "input_ids": IDS, "first_pieces": [0, 1], "pieces": [1, 0],
    },
    "word 0 is 2 pieces from place 0 on": {"input_ids": IDS, "first_pieces": [0, 1], "pieces": [2, 1]},
    "word 1 is 2 pieces from place 2 on": {"input_ids": IDS, "first_pieces": [0, 2], "pieces": [1, 2]},
    "word 0 is 1 pieces from place -1 on": {"input_ids": IDS, "first_pieces": [-1], "pieces": [1]},
    "word 0 is 9223372036854775807 pieces": {"input_ids": IDS, "first_pieces": [0], "pieces": [2**63 - 1]},
    "word 0 is 1 pieces from place 2 on; words must follow one another within the 2": {
        "input_ids": IDS, "attention_mask": [1, 1, 0], "first_pieces": [2], "pieces": [1],
    },
    "'pieces' must be a flat sequence of integers": {"input_ids": IDS, "first_pieces": [0], "pieces": [1.5]},
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG_WORDS)
def test_wrong_words(said: str) -> None:
    with pytest.raises(pfengine.InputError, match=said):
        parse(3, WRONG_WORDS[said])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_words_of_ids(kind: Any) -> None:
    row = parse(0, {"input_ids": kind(IDS), "first_pieces": kind([0, 2]), "pieces": kind([2, 1])})
    assert isinstance(row, Row)
    assert row.first_pieces is not None
    assert row.pieces is not None
    assert (row.first_pieces.tolist(), row.pieces.tolist()) == ([0, 2], [2, 1])
    assert (row.first_pieces.dtype, row.pieces.dtype) == (np.int32, np.int32)
    none = parse(0, {"input_ids": IDS, "first_pieces": [], "pieces": []})
    assert isinstance(none, Row)
    assert none.first_pieces is not None
    assert len(none.first_pieces) == 0


def test_words_are_one_text() -> None:
    assert parse(0, {"words": ["New York", "is"], "tags": [1, 0]}) == Text(
        "New York is", None, None, ("New York", "is")
    )
    assert parse(0, {"words": ["a"], "threshold": 0.5}).knob == ("threshold", 0.5)
    assert size({"words": ["New York", "is"]}) == 12
