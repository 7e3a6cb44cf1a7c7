"""A tiny encoder and rows that it can learn."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from ..conftest import DISENTANGLED, own_names

GOOD, BAD, FILL = ("good", "fine", "great"), ("bad", "poor", "awful"), ("film", "plot", "a", "the", "is", "very")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3-layer BERT with random weights and a word tokenizer, as AutoModel saves it."""
    path = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILL]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def relatives(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """relatives(family) -> a 3-layer encoder of another family with the same tokenizer, made once."""

    @functools.cache
    def make(family: str) -> Path:
        path = tmp_path_factory.mktemp(family)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (path / file).write_bytes((encoder / file).read_bytes())
        torch.manual_seed(0)
        sizes = {
            "vocab_size": 16, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 40, "embedding_size": 24, "model_type": family,
        }  # fmt: skip
        sizes |= DISENTANGLED if family == "deberta-v2" else {}
        sizes |= {"pad_token_id": 0, "local_attention": 4} if family == "modernbert" else {}
        config = transformers.AutoConfig.for_model(**own_names(sizes))
        transformers.AutoModel.from_config(config).save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    draw = random.Random(0)
    lines = ["sentence\tlabel"]
    for i in range(400):
        label = i % 2
        words = [draw.choice(GOOD if label else BAD), *draw.choices(FILL, k=draw.randint(1, 8))]
        draw.shuffle(words)
        lines.append(" ".join(words) + f"\t{label}")
    (path / "train.tsv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in CoNLL's columns: "good" or "bad", and opinions of the same kind after it, are an entity."""
    path = tmp_path_factory.mktemp("tagged")
    draw, lines = random.Random(0), ["-DOCSTART- O", ""]
    for _ in range(300):
        for _ in range(draw.randint(1, 4)):
            lines += [f"{word} O" for word in draw.choices(("film", "plot", "a", "the", "is"), k=draw.randint(0, 2))]
            kind, (first, *more) = draw.choice((("GOOD", GOOD), ("BAD", BAD)))
            first += draw.choice(("", "-plot"))  # one or three pieces
            words = [first, *draw.choices(more, k=draw.randint(0, 2))]
            lines += [f"{word} {'I' if i else 'B'}-{kind}" for i, word in enumerate(words)]
        lines.append("")
    (path / "train.conll").write_text("\n".join(lines))
    return path


@pytest.fixture
def steps_from_now(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """steps_from_now() -> a list that the numbers of all optimiser steps go into, from then on."""

    def watch() -> list[int]:
        taken: list[int] = []
        run = transformers.Trainer.training_step

        def note(self: Any, *arguments: Any, **options: Any) -> Any:
            taken.append(self.state.global_step)
            return run(self, *arguments, **options)

        monkeypatch.setattr(transformers.Trainer, "training_step", note)
        return taken

    return watch
