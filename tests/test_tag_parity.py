"""A plain Hugging Face token-classification directory tags as transformers.pipeline does, word by first piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pfengine

from .conftest import own_names
from .test_pipeline_parity import CORPUS, FAMILIES, LONG, SIZES

LABELS = {
    "iob": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "plain": ["O", "PER", "LOC"],
}
TEXTS = [*CORPUS[:6], "", " ", "x", "Paris, in (France)", "  two  spaces\tand a tab ", "un-affecting clara's film."]


def save(path: Path, family: str, labels: list[str]) -> Any:
    make_tokenizer, sizes = FAMILIES[family]
    tokenizer = make_tokenizer()
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(
        vocab_size=len(tokenizer), id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        initializer_range=0.3, pad_token_id=tokenizer.pad_token_id, **own_names(SIZES | sizes | {"model_type": family}),
    )  # fmt: skip
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="first"
    )


def same(ours: list[Any], theirs: list[Any]) -> None:
    assert [(one["label"], one["start"], one["end"]) for one in ours] == [
        (one["entity_group"], one["start"], one["end"]) for one in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        # fp32 sums in another order, and random weights that amplify it
        assert mine["score"] == pytest.approx(float(other["score"]), abs=3e-5)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_entities_equal_the_pipeline(tmp_path: Path, family: str, labels: str) -> None:
    pipe = save(tmp_path, family, LABELS[labels])
    engine = pfengine.load(tmp_path)
    assert engine.exit_layers == (SIZES["num_hidden_layers"],)
    found = engine.tag(TEXTS)
    for text, mine in zip(TEXTS, found, strict=True):
        same(mine, pipe(text))
        assert [one["text"] for one in mine] == [text[one["start"] : one["end"]] for one in mine]
    assert sum(map(len, found)) > 8


def test_words_of_other_tokenizers_are_scored_by_their_first_piece(tmp_path: Path) -> None:
    """As in training with `is_split_into_words`. The pipeline guesses words there, and warns that it does."""
    pipe = save(tmp_path, "albert", LABELS["iob"])
    engine = pfengine.load(tmp_path)
    for text in CORPUS[:6]:
        encoded = pipe.tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            answers = pipe.model(**encoded).logits[0].softmax(-1).max(-1)
        words = encoded.word_ids()
        first = [words.index(i) for i in range(len(text.split()))]
        for found in (*engine.tag(text), *engine.tag([text.split()])):
            assert found.tags == [LABELS["iob"][i] for i in answers.indices[first].tolist()]
            assert found.scores == pytest.approx(answers.values[first].tolist(), abs=3e-5)  # fp32, as above


def test_given_words_equal_the_pipeline(tmp_path: Path) -> None:
    """Where they have no punctuation, at which the pipeline splits them all the same."""
    pipe = save(tmp_path, "bert", LABELS["iob"])
    words = [
        "we",
        "root",
        "for",
        "clara",
        "and",
        "naïve",
        "paul",
        "here",
    ]  # with punctuation in a word theirs splits it all the same
    (theirs,) = pipe([words], is_split_into_words=True)
    found = pfengine.load(tmp_path).tag([words])[0]
    assert [one["text"].split() for one in found] == [words[slice(*one["words"])] for one in found]
    same(found, theirs)


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    save(tmp_path, "bert", LABELS["iob"])
    engine = pfengine.load(tmp_path)
    with pytest.warns(UserWarning, match="1 of 2 rows had more than 64 tokens and were truncated"):
        cut, _ = engine.tag([LONG, CORPUS[0]])
    assert cut == engine.tag([LONG[: cut.spans[-1][1]]])[0]
    assert len(cut.tags) < len(LONG.split())
    with pytest.raises(pfengine.InputError, match="row 0: has more than 64 tokens"):
        engine.tag([LONG], truncation="error")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_tokens_equal_transformers(tmp_path: Path, family: str) -> None:
    pipe = save(tmp_path, family, LABELS["plain"])
    ids = torch.tensor([[5, 9, 12, 7, 30, 6, 11, 19, 8, 44, 13, 5, 5, 17]])
    with torch.no_grad():
        theirs = pipe.model(input_ids=ids).logits[0].numpy()
    ours = pfengine.load(tmp_path).layer_logits({"input_ids": ids[0].tolist()})[-1][0]
    np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=0)  # fp32 sums in another order
