"""What a user calls: every form of input, every way out, lazily and in order."""

from __future__ import annotations

import collections
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import windows

Make = Callable[..., Path]
TEXTS = ["the film is very good", "bleak", "it 's a slow journey and a bad movie", "charming or unflinchingly bleak"]


@pytest.fixture(scope="module")
def engine(text_checkpoint: Path) -> pfengine.Engine:
    return pfengine.load(text_checkpoint, criterion="entropy:0.8")


@pytest.fixture(scope="module")
def answers(engine: pfengine.Engine) -> list[dict[str, Any]]:
    """Of TEXTS, one row at a time."""
    out = [engine.classify(text)[0] for text in TEXTS]
    assert len({answer["score"] for answer in out}) == len(TEXTS)  # so that a mix-up would show
    return out


def numpy_column() -> Iterator[Any]:
    return iter(np.array([[text, "x"] for text in TEXTS])[:, 0])


@pytest.mark.parametrize(
    "inputs",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        dict.fromkeys(TEXTS).keys(),
        collections.deque(TEXTS),
        [{"text": text} for text in TEXTS],
        [{"text": text, "text_pair": None} for text in TEXTS],
        [np.str_(text) for text in TEXTS],
        [collections.OrderedDict(text=text) for text in TEXTS],
    ],
    ids=["list", "tuple", "array", "objects", "keys", "deque", "dicts", "no pair", "str_", "mappings"],
)
def test_iterables_of_rows(engine: pfengine.Engine, answers: list, inputs: Any) -> None:
    assert engine.classify(inputs) == answers
    assert list(engine.stream(inputs)) == answers
    assert engine.predict(inputs).exit_layers.tolist() == [answer["exit_layer"] for answer in answers]


def test_rows_that_come_once(engine: pfengine.Engine, answers: list) -> None:
    assert engine.classify(text for text in TEXTS) == answers
    assert list(engine.stream(iter(TEXTS))) == answers
    assert engine.classify(map(str, TEXTS)) == answers
    assert engine.classify(numpy_column()) == answers
    assert len(engine.predict(text for text in TEXTS).label_ids) == len(TEXTS)
    assert engine.layer_logits(text for text in TEXTS).shape[1] == len(TEXTS)


def test_one_row_gives_a_list_of_one(engine: pfengine.Engine, answers: list) -> None:
    for row in (TEXTS[0], np.str_(TEXTS[0]), {"text": TEXTS[0]}):
        assert engine.classify(row) == answers[:1]
        assert list(engine.stream(row)) == answers[:1]
        assert engine.predict(row).logits.shape == (1, 3)
        assert engine.layer_logits(row).shape == (5, 1, 3)


def test_a_tuple_of_two_is_a_pair_and_a_list_of_two_is_two_rows(engine: pfengine.Engine, answers: list) -> None:
    pair = (TEXTS[0], TEXTS[1])
    one = engine.classify(pair)
    assert len(one) == 1
    assert one == engine.classify([pair]) == engine.classify({"text": TEXTS[0], "text_pair": TEXTS[1]})
    assert one[0]["score"] not in (answers[0]["score"], engine.classify(" ".join(pair))[0]["score"])
    assert engine.classify(list(pair)) == answers[:2]
    assert engine.classify(tuple(TEXTS[:3])) == answers[:3]  # three texts are no pair
    assert engine.classify([pair, pair[::-1]])[0] == one[0] != engine.classify([pair, pair[::-1]])[1]
    assert len(engine.classify([pair])) == len(engine.predict(pair).label_ids) == 1
    assert len(engine.classify((pair, pair))) == 2


def test_ids_are_taken_verbatim(engine: pfengine.Engine, answers: list) -> None:
    ids = [2, 5, 7, 9, 11, 12, 3]  # [CLS] the film is very good [SEP]
    assert engine.classify({"input_ids": ids}) == answers[:1]
    assert engine.classify({"input_ids": ids, "token_type_ids": [0] * 7}) == answers[:1]
    for other in (np.array(ids, dtype=np.uint8), np.array(ids, dtype=np.int32), tuple(ids), range(2, 9)):
        out = engine.classify([{"input_ids": other}])
        assert (out == answers[:1]) == (list(other) == ids)
    bare = engine.predict({"input_ids": ids[1:-1]})  # nothing is added
    assert not np.array_equal(bare.logits, engine.predict(TEXTS[0]).logits)
    typed = engine.predict({"input_ids": ids, "token_type_ids": [0, 0, 0, 1, 1, 1, 1]})
    assert not np.array_equal(typed.logits, engine.predict(TEXTS[0]).logits)
    pair = engine.predict((TEXTS[0], "bleak"))
    by_hand = engine.predict({"input_ids": [*ids, 15, 3], "token_type_ids": [0] * 7 + [1] * 2})
    np.testing.assert_array_equal(pair.logits, by_hand.logits)


def test_forms_may_be_mixed_and_order_is_kept(engine: pfengine.Engine) -> None:
    rows: list[Any] = [
        TEXTS[2],
        (TEXTS[0], "x"),
        {"input_ids": [2, 3]},
        {"text": "a"},
        TEXTS[1],
        {"input_ids": [9] * 60},
    ]
    alone = [engine.classify([row])[0] for row in rows]
    assert engine.classify(rows) == alone
    assert engine.classify(rows * 50, batch_tokens=70) == alone * 50
    assert engine.classify(rows * 50, batch_size=1) == alone * 50


@pytest.mark.parametrize("empty", [[], (), "generator", np.array([], dtype=str), {}.keys()], ids=str)
def test_no_rows(engine: pfengine.Engine, empty: Any) -> None:
    def rows() -> Any:
        return iter(()) if isinstance(empty, str) else empty

    assert engine.classify(rows()) == []
    assert list(engine.stream(rows())) == []
    out = engine.predict(rows())
    assert out.logits.shape == out.probabilities.shape == (0, 3)
    assert (out.logits.dtype, out.exit_layers.dtype, out.label_ids.dtype) == (np.float32, np.int64, np.int64)
    assert out.label_ids.shape == out.exit_layers.shape == (0,)
    assert np.isnan(out.layer_speedup)
    assert engine.layer_logits(rows()).shape == (5, 0, 3)
    assert engine.layer_logits(rows()).dtype == np.float32


def test_empty_texts_are_rows(engine: pfengine.Engine) -> None:
    empty = engine.classify({"input_ids": [2, 3]})
    assert engine.classify("") == engine.classify([""]) == engine.classify(" \t\n") == empty
    assert engine.classify(["", TEXTS[0], ""])[::2] == empty * 2
    assert engine.classify(("", "")) == engine.classify({"text": "", "text_pair": ""}) == empty  # as transformers
    second = {"input_ids": [2, 3, 15, 3], "token_type_ids": [0, 0, 1, 1]}
    assert engine.classify(("", "bleak")) == engine.classify(second)


def test_characters_that_are_no_text(engine: pfengine.Engine) -> None:
    for text, clean in (
        ("good\ud800", "good\ufffd"),
        ("\udfff good", "\ufffd good"),
        ("\ud800\ud800", "\ufffd\ufffd"),
        ("a \udc80bad film", "a \ufffdbad film"),
        ("\ud83d\ude00 film", "\U0001f600 film"),
    ):
        assert engine.classify(text) == engine.classify(clean), repr(text)
        assert engine.classify(("bad", text)) == engine.classify(("bad", clean))
        assert engine.classify({"text": text, "text_pair": text}) == engine.classify((clean, clean))
    assert engine.classify("go\0od film\0") == engine.classify("good film")  # BERT's normaliser drops NUL
    assert len(engine.classify(["\0", "\0" * 5000, "\ufeff", "\u202e", "\U0010ffff", "\r\n"])) == 6


@pytest.mark.parametrize("top_k", [1, 2, 3, 99, None])
def test_top_k(engine: pfengine.Engine, top_k: int | None) -> None:
    predictions = engine.predict(TEXTS)
    out = engine.classify(TEXTS, top_k=top_k)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-6)
    for i, row in enumerate(out):
        order = np.argsort(-predictions.probabilities[i])
        wanted = [
            {
                "label": f"L{label}",
                "score": float(predictions.probabilities[i, label]),
                "exit_layer": predictions.exit_layers[i],
            }
            for label in order[:top_k]
        ]
        assert row == (wanted[0] if top_k == 1 else wanted)
        first = row if top_k == 1 else row[0]
        assert (type(first["label"]), type(first["score"]), type(first["exit_layer"])) == (str, float, int)


def test_predictions(engine: pfengine.Engine) -> None:
    out = engine.predict(TEXTS, criterion="replay:1,5,2,3")
    logits = engine.layer_logits(TEXTS)
    np.testing.assert_array_equal(out.exit_layers, [1, 5, 2, 3])
    np.testing.assert_array_equal(out.logits, logits[[0, 4, 1, 2], range(4)])
    shifted = np.exp(out.logits.astype(np.float64))
    np.testing.assert_allclose(out.probabilities, shifted / shifted.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(out.label_ids, out.logits.argmax(1))
    assert (out.logits.dtype, out.probabilities.dtype) == (np.float32, np.float32)
    assert (out.exit_layers.dtype, out.label_ids.dtype) == (np.int64, np.int64)
    assert out.layer_speedup == pytest.approx(5 * 4 / (1 + 5 + 2 + 3))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_probabilities_follow_the_problem_type(make_text_checkpoint: Make, problem_type: str) -> None:
    path = make_text_checkpoint(config={"problem_type": problem_type}, criterion="never")
    out = pfengine.load(path).predict(TEXTS, criterion="replay:1,5,2,3")
    wanted = out.logits if problem_type == "regression" else 1 / (1 + np.exp(-out.logits.astype(np.float64)))
    np.testing.assert_allclose(out.probabilities, wanted, atol=1e-6)
    np.testing.assert_array_equal(out.label_ids, out.logits.argmax(1))


def test_extreme_logits_give_finite_scores() -> None:
    logits = np.array([[200.0, -200.0, 0.0], [-1e4, -1e4, -1e4]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = pfengine.Predictions(logits, np.ones(2, np.int64), 6, "single_label_classification").probabilities
    np.testing.assert_allclose(scores, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)


def counting(rows: Iterator[Any], seen: list[int]) -> Iterator[Any]:
    for row in rows:
        seen[0] += 1
        yield row


def test_stream_is_lazy(engine: pfengine.Engine) -> None:
    seen = [0]
    stream = engine.stream(counting(iter(TEXTS * 100_000), seen), batch_tokens=128)
    assert seen[0] == 0
    next(stream)
    first = seen[0]
    assert 0 < first < 2000
    for _ in range(3 * first):
        next(stream)
    assert seen[0] <= 5 * first
    stream.close()
    assert engine.classify(TEXTS[0])


@pytest.mark.parametrize("kind", ["ids", "text"])
def test_few_token_budgets_are_in_flight(engine: pfengine.Engine, kind: str) -> None:
    """However long the rows are: what is read ahead is counted in tokens, not in rows."""
    seen, budgets = [0], 2 * windows.WINDOW_BATCHES
    row: Any = {"input_ids": [7] * 64} if kind == "ids" else "very good " * 31
    stream = engine.stream(counting(iter([row] * 600), seen), batch_tokens=256)
    next(stream)
    assert seen[0] * 64 <= budgets * 256
    for done in range(2, 200):
        next(stream)
        assert (seen[0] - done) * 64 <= budgets * 256
    assert len(list(stream)) == 600 - 199


def test_a_generator_that_raises(engine: pfengine.Engine, answers: list) -> None:
    def rows() -> Iterator[str]:
        yield from TEXTS
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        engine.classify(rows())
    with pytest.raises(LookupError, match="the source broke"):
        list(engine.stream(rows(), on_error="return"))
    assert engine.classify(TEXTS) == answers


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_two_hundred_thousand_rows_in_bounded_memory(make_text_checkpoint: Make) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 16}
    engine = pfengine.load(make_text_checkpoint(config=sizes, threshold=0.9))
    seen, rows = [0], 200_000
    words = ("good", "bad", "very", "film", "slow")
    source = (f"{words[i % 5]} {words[i % 3]} {i % 10}" for i in range(rows))
    done, base, most, ahead, layers = 0, 0.0, 0.0, 0, set()
    for answer in engine.stream(counting(source, seen)):
        done += 1
        layers.add(answer["exit_layer"])
        ahead = max(ahead, seen[0] - done)
        if done % 10_000 == 0:
            most = max(most, resident_mib())
            base = most if done <= 40_000 else base  # after that nothing should grow
    assert done == seen[0] == rows
    assert layers == {1, 2}
    assert ahead <= 8 * 4096 / 5  # 5 tokens a row
    assert most - base < 20, "160,000 answers or rows kept take 50 MiB and more"


def test_threads_share_an_engine(engine: pfengine.Engine) -> None:
    rows = [text[: 3 + i] for i, text in enumerate(TEXTS * 40)]
    jobs: list[dict[str, Any]] = [
        {"threshold": t, "batch_size": b} for t, b in ((0.2, 3), (0.9, None), (1.05, 7), (0.5, 1))
    ]
    wanted = [engine.classify(rows, **job) for job in jobs]
    assert len({tuple(row["exit_layer"] for row in out) for out in wanted}) > 1
    got: list[Any] = [None] * len(jobs)

    def work(i: int) -> None:
        got[i] = [engine.classify(rows, **jobs[i]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[out] * 3 for out in wanted]


def test_what_an_engine_says_of_itself(engine: pfengine.Engine) -> None:
    assert engine.labels == ("L0", "L1", "L2")
    assert (engine.num_layers, engine.exit_layers, engine.max_length) == (5, (1, 2, 3, 4, 5), 64)
    assert repr(engine.criterion) == "entropy:0.8"
    for name in pfengine.__all__:
        assert hasattr(pfengine, name), name
    with pytest.raises(AttributeError, match="clasify"):
        pfengine.clasify  # noqa: B018
