"""Small tokenizers of every family in directories, and how ours is held against transformers' of the same files."""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import pfengine
from pfengine.checkpoint import tokenizer_files as read_files
from pfengine.config import BackboneConfig, parse_backbone
from pfengine.rows import Row
from pfengine.tokenization import Tokenizer

from .conftest import own_names

JSON, SETTINGS, ADDED, MAP = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
CORPUS = [
    "a charming and often affecting journey", "unflinchingly bleak and desperate", "the film is Very GOOD, really!",
    "it 's slow -- very , very slow .", "naïve café ☕ 東京 don't", "we root for clara and paul ``here''",
] * 3  # fmt: skip
TEXTS = [
    *CORPUS[:6], "", " ", "  leading space", "A naïve CAFÉ, ÉCOLE", "東京 the film", "tok1 in tok1good newtok",
    "[SEP] and </s> in it", "[MASK]<mask> x [CLS]<s> <pad>[PAD] [UNK]<unk>", " <mask> ", "<extra> good<extra>",
    "<s>NOTUSED ``quoted''", "ﬁne ½ Ｗide", "$ !", "X" * 200, "\u200bzero\tand\nline", "NEWTOK NewTok",
    "the film is very good " * 12,
]  # fmt: skip
PAIRS = [(TEXTS[0], TEXTS[2]), ("Naïve", "tok1 [SEP] x"), (TEXTS[-1], "the film"), ("the film", TEXTS[-1])]
SIZES = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8,
         "max_position_embeddings": 64, "type_vocab_size": 2, "embedding_size": 8}  # fmt: skip


def bert() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*CORPUS, "newtok Naïve CAFÉ GOOD naive cafe"]
    made.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def mpnet() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def roberta() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def unigram(*special: str) -> tokenizers.Tokenizer:
    unknown = next(token for token in special if token.lower() in ("<unk>", "[unk]"))
    made = tokenizers.Tokenizer(models.Unigram())
    bundled = json.loads((Path(pfengine.__file__).parent / "checkpoints" / "sst2" / "tokenizer.json").read_text())
    frame = json.loads(made.to_str()) | {"normalizer": bundled["normalizer"]}  # which has SentencePiece's charsmap
    made = tokenizers.Tokenizer.from_str(json.dumps(frame))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=list(special), unk_token=unknown)
    made.train_from_iterator(CORPUS, trainer)
    first, last = ("[CLS]", "[SEP]") if "[CLS]" in special else ("<s>", "</s>")
    ids = [(token, special.index(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1", ids)
    return made


def sentence() -> tokenizers.Tokenizer:
    return unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>")


MADE: dict[str, Callable[[], tokenizers.Tokenizer]] = {  # by config.json's model_type
    "bert": bert, "distilbert": bert, "electra": bert, "mpnet": mpnet, "roberta": roberta, "xlm-roberta": sentence,
    "camembert": sentence,
    "albert": lambda: unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "deberta-v2": lambda: unigram("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
}  # fmt: skip


def backbone(path: Path) -> BackboneConfig:
    faults: list[str] = []
    config = parse_backbone(json.loads((path / "config.json").read_text()), faults)
    assert config is not None
    assert not faults
    return config


def load(path: Path, max_length: int | None = None, **options: Any) -> Tokenizer:
    return Tokenizer(read_files(path), backbone(path), max_length, path=path, **options)


def write(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        if callable(content):
            content = content(json.loads((path / name).read_text()))
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    return path


def same_as_transformers(path: Path, asked: bool) -> None:
    """Ids and types of every text and pair, or an error where transformers has one or gives no tokens at all.

    asked: is transformers needed for that? Without it such a directory is refused.
    """
    alone = contextlib.nullcontext if asked else no_transformers
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception:
        with alone(), pytest.raises(pfengine.CheckpointError, match=r"\.json"):
            load(path)
        return
    if asked:
        with no_transformers(), pytest.raises(pfengine.CheckpointError, match=r"\.json.*; install transformers"):
            load(path)
    rows = [*TEXTS, *PAIRS]
    for length in (64, 12):
        with alone():
            ours = load(path, length).encode(enumerate(rows))
        for row, got in zip(rows, ours, strict=True):
            try:
                expected = theirs(*(row if isinstance(row, tuple) else (row,)), truncation=True, max_length=length)
            except Exception:
                assert isinstance(got, pfengine.InputError), (row, length)
                continue
            if expected["input_ids"]:
                assert isinstance(got, Row), (row, length, got)
                assert got.ids.tolist() == expected["input_ids"], (row, length)
                if backbone(path).type_vocab_size:
                    types = [0] * len(got.ids) if got.types is None else got.types.tolist()
                    assert types == expected.get("token_type_ids", [0] * len(got.ids)), (row, length)
                else:  # which a model without token types ignores
                    assert got.types is None
            else:
                assert isinstance(got, pfengine.InputError), (row, length)


@contextlib.contextmanager
def no_transformers() -> Iterator[None]:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "__import__", refuse)
        yield


def token(content: str, **fields: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}
    return {"content": content} | flags | fields


def make_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each family: tokenizer.json, config.json, no tokenizer_config.json."""
    out = {}
    for name, make in MADE.items():
        out[name] = tmp_path_factory.mktemp(name)
        made = make()
        made.save(str(out[name] / "tokenizer.json"))
        size = made.get_vocab_size() + 10  # for tokens to be added
        raw = own_names(SIZES | {"model_type": name, "pad_token_id": 1, "vocab_size": size})
        write(out[name], {"config.json": raw})
    return out
