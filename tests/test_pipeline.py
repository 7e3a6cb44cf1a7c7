"""`pfengine.pipeline` beside `transformers.pipeline("text-classification")`: the same calls, the same answers."""

from __future__ import annotations

import itertools
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import Dataset, IterableDataset
from transformers.pipelines.pt_utils import KeyDataset

import pfengine
from pfengine.pipeline import TextClassificationPipeline

from .conftest import ROOT
from .pairwise import every, pairwise
from .test_pipeline_parity import CORPUS, FAMILIES, LONG, PROBLEMS, SIZES, bert_tokenizer, save

Make = Callable[..., Path]
TEXTS = [*CORPUS[:6], "", "x"]
PAIR = {"text": CORPUS[0], "text_pair": CORPUS[1]}
SPREAD = 0.15  # of random weights: small enough that fp32 sums in another order differ by less than 3e-6
BOTH = tuple[TextClassificationPipeline, Any]


def same(ours: Any, theirs: Any) -> None:
    """The same lists and dicts, the same labels, scores within 3e-6: torch sums in another order on busy cores."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=3e-6)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("plain")
    save(found, "bert", spread=SPREAD)
    return found


@pytest.fixture(scope="module")
def both(path: Path) -> BOTH:
    return pfengine.pipeline("text-classification", str(path)), transformers.pipeline(
        "text-classification", str(path), device="cpu"
    )


CALLS: list[tuple[Any, dict[str, Any]]] = [
    (CORPUS[0], {}), (TEXTS, {}), (PAIR, {}), ([PAIR, CORPUS[1], {"text": CORPUS[2]}], {}), ([CORPUS[0]], {}),
    (CORPUS[0], {"top_k": None}), (TEXTS, {"top_k": None}), (PAIR, {"top_k": None}), (CORPUS[0], {"top_k": 1}),
    (TEXTS, {"top_k": 1}), (TEXTS, {"top_k": 2}), (TEXTS, {"top_k": 99}), (TEXTS, {"top_k": 0}),
    (CORPUS[0], {"top_k": -1}),
    (TEXTS, {"function_to_apply": "sigmoid"}), (TEXTS, {"function_to_apply": "Softmax", "top_k": None}),
    (TEXTS, {"function_to_apply": "none", "top_k": None}), (TEXTS, {"function_to_apply": None}),
    (TEXTS, {"batch_size": 4, "padding": True}), (TEXTS, {"padding": "longest", "num_workers": 0}),
    ([LONG, *TEXTS], {"truncation": True}), ([LONG, PAIR], {"truncation": True, "max_length": 16}),
    ([LONG, CORPUS[0]], {"max_length": 16}), ([LONG], {"truncation": "longest_first", "padding": "max_length"}),
    (TEXTS, {"max_length": 16, "truncation": False}), (TEXTS, {"max_length": 16, "padding": True}),
    ([[[CORPUS[0], CORPUS[1]]]], {}), ({"text": CORPUS[0], "label": 3}, {}), (TEXTS, {"return_all_scores": False}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("inputs", "options"), CALLS)
def test_calls_answer_as_transformers_does(both: BOTH, inputs: Any, options: dict[str, Any]) -> None:
    ours, theirs = both
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [
    {"top_k": None}, {"top_k": 1}, {"top_k": 2, "function_to_apply": "sigmoid"}, {"truncation": True, "max_length": 9},
    {"function_to_apply": "none"}, {"batch_size": 8, "padding": True}, {"dtype": torch.float32},
    {"use_fast": True, "model_kwargs": {"attn_implementation": "eager"}, "trust_remote_code": False},
    {"revision": "main", "torch_dtype": "auto"},
    {"device": -1}, {"device": torch.device("cpu")}, {"device_map": "cpu"},
])  # fmt: skip
def test_options_of_the_pipeline_go_before_the_defaults(path: Path, options: dict[str, Any]) -> None:
    where = {} if "device" in options or "device_map" in options else {"device": "cpu"}
    ours = pfengine.pipeline("sentiment-analysis", model=str(path), **options)
    theirs = transformers.pipeline("sentiment-analysis", model=str(path), **options, **where)
    for inputs, call in ((CORPUS[0], {}), (TEXTS, {}), (PAIR, {}), (CORPUS[0], {"top_k": 1})):
        same(ours(inputs, **call), theirs(inputs, **call))
    same(ours(TEXTS, function_to_apply="softmax"), theirs(TEXTS, function_to_apply="softmax"))
    same(list(ours(text for text in TEXTS)), list(theirs(text for text in TEXTS)))
    assert (ours.task, ours.device) == (theirs.task, theirs.device)


ABSENT = "absent"
CASES = every(
    inputs=["string", "list", "dict", "generator"],
    top_k=[ABSENT, None, 2],
    function_to_apply=[ABSENT, "sigmoid", "none"],
    truncation=[ABSENT, True, False],
    max_length=[ABSENT, 9, 64],
    padding=[ABSENT, True, "max_length"],
    given_to=["pipeline", "call", "both"],
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [pytest.param(case, id="-".join(map(str, case.values()))) for case in pairwise(CASES)])
def test_options_together(path: Path, case: dict[str, Any]) -> None:
    options = {name: value for name, value in case.items() if name not in ("inputs", "given_to") and value != ABSENT}
    first = options if case["given_to"] != "call" else {}
    then = options if case["given_to"] != "pipeline" else {}
    inputs: Any = {"string": TEXTS[1], "dict": PAIR}.get(case["inputs"], TEXTS)
    found = []
    for make, where in ((pfengine.pipeline, {}), (transformers.pipeline, {"device": "cpu"})):
        pipe = make("text-classification", model=str(path), **first, **where)
        answers = pipe((text for text in inputs) if case["inputs"] == "generator" else inputs, **then)
        found.append(list(answers) if case["inputs"] == "generator" else answers)
    same(*found)


@pytest.mark.parametrize(
    ("family", "labels", "problem"),
    [(family, *problem) for family, problem in zip(itertools.cycle(FAMILIES), PROBLEMS, strict=False)],
)
def test_every_family_and_problem(tmp_path: Path, family: str, labels: int, problem: str | None) -> None:
    save(tmp_path, family, labels, problem, SPREAD)
    ours = pfengine.pipeline(model=str(tmp_path))
    theirs = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    for inputs, options in ((TEXTS, {}), ([PAIR], {"top_k": None}), (CORPUS[0], {"function_to_apply": "sigmoid"})):
        same(ours(inputs, **options), theirs(inputs, **options))
    config = theirs.model.config
    for name in ("id2label", "label2id", "num_labels", "problem_type", "model_type"):
        assert getattr(ours.model.config, name) == getattr(config, name)
    assert (ours.dtype, ours.model.device) == (theirs.dtype, theirs.model.device)


class Texts(Dataset[str]):
    def __init__(self, texts: list[str]) -> None:
        self.texts, self.read = texts, 0

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> str:
        self.read += 1
        return self.texts[i]


class Stream(IterableDataset[str]):
    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


def test_datasets_stream(both: BOTH) -> None:
    ours, theirs = both
    records = KeyDataset([{"text": text} for text in TEXTS], "text")
    for data in (Texts(TEXTS), records):
        found = ours(data, batch_size=3, top_k=2)
        assert len(found) == len(theirs(data)) == len(TEXTS)
        same(list(found), list(theirs(data, top_k=2)))
        same(list(found), list(theirs(data, top_k=2)))  # an iteration begins anew
    same(list(ours(Stream())), list(theirs(Stream())))
    endless = Texts(TEXTS * 100_000)
    same(next(iter(ours(endless))), theirs(TEXTS[0])[0])
    assert endless.read < 20_000
    same(next(ours(Texts(TEXTS))), theirs(TEXTS[0])[0])


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_generator_is_read_no_further_than_it_is_answered(both: BOTH, size: int | None) -> None:
    ours, theirs = both
    read = []

    def rows() -> Iterator[Any]:
        for text in [*TEXTS, PAIR] * 2:
            read.append(text)
            yield text

    answers = ours(rows(), batch_size=size)
    assert iter(answers) is answers
    assert read == []
    found = []
    for i, answer in enumerate(answers):
        assert len(read) == min(18, (i // (size or 1) + 1) * (size or 1))
        found.append(answer)
    same(found, list(theirs(text for text in read[:])))
    assert list(ours(text for text in [])) == ours([]) == []
    same(list(ours(iter(TEXTS))), list(theirs(TEXTS)))  # transformers refuses other iterators than generators


def test_a_generator_reads_on_a_gpu_no_further_either(both: BOTH, monkeypatch: pytest.MonkeyPatch) -> None:
    """There worker threads read a window ahead."""
    read = []
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(pfengine.Engine, "_workers", pool)
        answers = both[0](read.append(text) or text for text in TEXTS)
        next(answers)
    assert read == TEXTS[:1]


def test_an_error_names_its_row_and_comes_after_the_answers_before_it(both: BOTH) -> None:
    ours, _ = both
    answers = ours(text for text in ["a", "b", 3, "c"])
    assert [next(answers)["label"], next(answers)["label"]] == [one["label"] for one in ours(["a", "b"])]
    with pytest.raises(pfengine.InputError, match="row 2: is of type int"):
        next(answers)

    def failing() -> Iterator[str]:
        yield "a"
        raise OSError("gone")

    answers = ours(failing())
    assert next(answers) == ours("a")[0]
    with pytest.raises(OSError, match="gone"):
        next(answers)


@pytest.mark.parametrize("inputs", [
    [["a", "b"]], [[["a", "b"], ["c", "d"]]], [[]], 3, [3], None, {"input": "a"}, {"text": 3}, [b"a"],
])  # fmt: skip
def test_what_transformers_refuses_is_refused(both: BOTH, inputs: Any) -> None:
    ours, theirs = both
    for pipe in (theirs, ours):
        with pytest.raises((ValueError, TypeError)):
            pipe(inputs)
    with pytest.raises(pfengine.PFEngineError):
        ours(inputs)


@pytest.mark.parametrize(("inputs", "said"), [
    ([["a", "b"]], 'row 0: is a list; for a pair of texts give {"text"'),
    ([CORPUS[0], ("a", "b")], "row 1: is a tuple; for a pair of texts"),  # transformers answers its first text alone
    (("a", "b"), "inputs is a tuple; give a list of texts"),
    ({"text": "a", "truncation": True}, "row 0: has the key 'truncation', an option of tokenizers"),
    (LONG, "row 0: has more than 64 tokens; shorten it, or truncate it"),
    ([CORPUS[0], {"text": "a", "text_pair": LONG}], "row 1: has more than 64 tokens"),
])  # fmt: skip
def test_refused_rows_say_what_to_do(both: BOTH, inputs: Any, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        both[0](inputs)
    assert said in str(raised.value)
    assert isinstance(raised.value, pfengine.PFEngineError)


def test_a_text_that_the_model_cannot_take_is_an_error_in_both(both: BOTH) -> None:
    for pipe in both:
        with pytest.raises((RuntimeError, IndexError, pfengine.InputError)):
            pipe([CORPUS[0], LONG])


@pytest.mark.parametrize("limit", [16, 1_000_000])
def test_the_limit_of_the_tokenizer_truncates_only_where_that_is_asked_for(tmp_path: Path, limit: int) -> None:
    """Without truncation a row may have as many tokens as the model takes, whatever the tokenizer's limit is."""
    tokenizer = save(tmp_path, "bert", spread=SPREAD).tokenizer
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(tmp_path)
    ours = pfengine.pipeline(model=str(tmp_path))
    theirs = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    middling = "the film is very good " * 6
    same(ours(middling), theirs(middling))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(ours(middling, truncation=True), theirs(middling, truncation=True))
        same(ours(LONG, truncation=True), theirs(LONG, truncation=True, max_length=min(limit, 64)))
        same(ours(LONG, truncation=True, max_length=600), theirs(LONG, truncation=True, max_length=64))
    assert (ours(middling) == ours(middling, truncation=True, max_length=16)) is False
    with pytest.warns(UserWarning, match=f"1 of 1 rows had more than {min(limit, 64)} tokens"):
        ours(LONG, truncation=True)


OWN: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS, {}), (PAIR, {"top_k": None}), (TEXTS, {"add_special_tokens": False}), (LONG, {"truncation": True}),
    ([PAIR, {"text": CORPUS[0], "text_pair": LONG}], {"truncation": "only_second", "max_length": 40}),
    (CORPUS[1], {"max_length": 6}), (PAIR, {"return_token_type_ids": False}), (TEXTS, {"padding": "max_length"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*were truncated")
@pytest.mark.parametrize("given", ["object", "directory"])
@pytest.mark.parametrize(("inputs", "options"), [each for each in OWN if each[0] != [""]])
def test_a_tokenizer_of_the_callers_reads_the_texts(
    path: Path, tmp_path: Path, given: str, inputs: Any, options: dict[str, Any]
) -> None:
    inputs = [text for text in inputs if text] if "add_special_tokens" in options else inputs
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None  # another one than the model's: capitals are unknown
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer(CORPUS[2])["input_ids"] != transformers.AutoTokenizer.from_pretrained(path)(CORPUS[2])["input_ids"]
    ours = pfengine.pipeline(model=str(path), tokenizer=tokenizer if given == "object" else tmp_path)
    theirs = transformers.pipeline("text-classification", model=str(path), tokenizer=tokenizer, device="cpu")
    same(ours(inputs, **options), theirs(inputs, **options))


def test_a_tokenizer_of_the_callers_that_fails_costs_a_row(path: Path) -> None:
    ours = pfengine.pipeline(model=str(path), tokenizer=bert_tokenizer())
    with pytest.raises(pfengine.InputError, match="row 1: cannot be tokenised"):
        ours(["a", {"text": "a", "nothing": 1, "truncation": "sideways"}])
    with pytest.raises(pfengine.InputError, match="row 0: has more than 64 tokens"):
        ours(LONG)
    assert ours.tokenizer.model_max_length == 64


def test_the_directory_of_the_model_may_be_named_for_the_tokenizer_too(both: BOTH, path: Path) -> None:
    for tokenizer in (str(path), path, f"{path}/../{path.name}"):
        pipe = pfengine.pipeline("text-classification", model=str(path), tokenizer=tokenizer)
        assert pipe._own_tokenizer is None
        assert pipe(TEXTS) == both[0](TEXTS)
    assert both[0].tokenizer(CORPUS[0])["input_ids"] == both[1].tokenizer(CORPUS[0])["input_ids"]
    assert both[0].tokenizer is both[0].tokenizer


@pytest.fixture(scope="module")
def early() -> TextClassificationPipeline:
    return pfengine.pipeline("text-classification", "sst2", precision="fp32", threshold=0.2)


def test_exits_are_chosen_for_the_pipeline_and_for_a_call(early: TextClassificationPipeline) -> None:
    engine = pfengine.load("sst2", precision="fp32")
    for options in ({}, {"threshold": 0.4}, {"speedup": 2.0}, {"criterion": "never"}, {"criterion": "patience:3"}):
        wanted = engine.classify(TEXTS, **(options or {"threshold": 0.2}))
        assert early(TEXTS, return_exit_layer=True, **options) == wanted
        assert list(early(iter(TEXTS), return_exit_layer=True, batch_size=2, **options)) == wanted
        assert early(TEXTS, **options) == [{"label": one["label"], "score": one["score"]} for one in wanted]
    per_row = [0.1 * i for i in range(len(TEXTS))]
    wanted = engine.classify(TEXTS, threshold=per_row)
    assert early(TEXTS, threshold=per_row, return_exit_layer=True) == wanted
    assert list(early(iter(TEXTS), threshold=per_row, return_exit_layer=True, batch_size=3)) == wanted
    own = pfengine.pipeline(model="sst2", precision="fp32", speedup=2, return_exit_layer=True, top_k=None)
    assert own(TEXTS) == engine.classify(TEXTS, speedup=2, top_k=None)
    over = pfengine.pipeline(model=engine, criterion="never")
    assert over(TEXTS, return_exit_layer=True) == engine.classify(TEXTS, criterion="never")
    assert engine.classify(TEXTS) == pfengine.load("sst2", precision="fp32").classify(TEXTS)  # it is not changed


@pytest.mark.filterwarnings("ignore:.*were truncated")
def test_it_pickles_and_copies_of_it_answer_alike(early: TextClassificationPipeline) -> None:
    early(LONG * 3, truncation=True, max_length=16)
    again = pickle.loads(pickle.dumps(early))
    assert again(TEXTS, top_k=None) == early(TEXTS, top_k=None)
    assert "TextClassificationPipeline" in repr(again)
    assert again.transform(TEXTS) == again.predict(TEXTS) == early(TEXTS)


@pytest.mark.filterwarnings("ignore:.*were truncated")
def test_longest_rows_that_are_kept_stay_few(both: BOTH) -> None:
    for length in range(5, 30):
        both[0](CORPUS[0], truncation=True, max_length=length)
    assert len(both[0]._limited) <= 4


def test_a_cascade(make_text_checkpoint: Make, tmp_path: Path) -> None:
    parts = [make_text_checkpoint(head="classifier", seed=seed) for seed in (0, 1)]
    out = pfengine.cascade(parts, tmp_path / "out", criterion="cascadebert", threshold=0.5)
    pipe, engine = pfengine.pipeline(model=out), pfengine.load(out)
    assert pipe(TEXTS, return_exit_layer=True) == engine.classify(TEXTS)
    with pytest.raises(pfengine.InputError, match="row 0: has more than 64 tokens"):
        pipe(LONG)
    with pytest.warns(UserWarning, match="had more than 64 tokens"):
        pipe(LONG, truncation=True)
    for options in ({"max_length": 9}, {"tokenizer": bert_tokenizer()}):
        with pytest.raises(pfengine.ConfigError, match="cascade"):
            pfengine.pipeline(model=out, **options)


def test_layers_of_a_plain_directory(both: BOTH) -> None:
    assert both[0](CORPUS[0], return_exit_layer=True)[0]["exit_layer"] == SIZES["num_hidden_layers"]


def test_the_lines_of_the_page_run_as_written() -> None:
    page = (ROOT / "docs/serving/pipeline.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 5
    names: dict[str, Any] = {}
    exec(code, names)
    assert [one["label"] for one in names["answers"]] == ["positive", "negative"]
    assert [one["label"] for one in names["scores"]] == ["positive", "negative"]
    assert names["faster"] == pfengine.load("sst2").classify("a charming and often affecting journey", speedup=2)
