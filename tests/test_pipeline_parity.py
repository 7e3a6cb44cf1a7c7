"""A plain Hugging Face directory answers as transformers.pipeline("text-classification") does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import pfengine

from .conftest import DISENTANGLED, own_names

CORPUS = [
    "a charming and often affecting journey", "unflinchingly bleak and desperate", "the film is Very GOOD, really!",
    "it 's slow -- very , very slow .", "we root for clara and paul", "naïve café ☕ 東京 don't",
] * 3  # fmt: skip
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
LONG = "the film is very good " * 60


def bert_tokenizer() -> transformers.PreTrainedTokenizerBase:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def roberta_tokenizer() -> transformers.PreTrainedTokenizerBase:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        bos_token="<s>", eos_token="</s>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def albert_tokenizer() -> transformers.PreTrainedTokenizerBase:
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def modernbert_tokenizer() -> transformers.PreTrainedTokenizerBase:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


FAMILIES = {
    "bert": (bert_tokenizer, {"max_position_embeddings": 64}),
    "roberta": (roberta_tokenizer, {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "albert": (albert_tokenizer, {"max_position_embeddings": 64, "embedding_size": 24, "classifier_dropout_prob": 0.0}),
    "mpnet": (bert_tokenizer, {"max_position_embeddings": 66}),
    "modernbert": (
        modernbert_tokenizer,
        {"max_position_embeddings": 64, "local_attention": 12, "classifier_pooling": "mean", "norm_bias": True},
    ),
    "deberta-v2": (albert_tokenizer, DISENTANGLED | {"max_position_embeddings": 64}),
    "electra": (bert_tokenizer, {"max_position_embeddings": 64, "embedding_size": 24}),
    "distilbert": (bert_tokenizer, {"max_position_embeddings": 64}),  # gives token types, which the model ignores
}
PROBLEMS: list[tuple[int, str | None]] = [
    (2, None),
    (3, "single_label_classification"),
    (4, "multi_label_classification"),
    (1, "regression"),
    (3, "regression"),
    (1, None),
    (1, "multi_label_classification"),
]


def save(path: Path, family: str, labels: int = 3, problem: str | None = None, spread: float = 0.3) -> Any:
    """A model with random weights and a trained tokenizer, and the pipeline over it."""
    make_tokenizer, sizes = FAMILIES[family]
    tokenizer = make_tokenizer()
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(
        vocab_size=len(tokenizer), problem_type=problem, num_labels=labels,
        id2label={i: f"label {i}" for i in range(labels)}, label2id={f"label {i}": i for i in range(labels)},
        initializer_range=spread, pad_token_id=tokenizer.pad_token_id,
        **own_names(SIZES | sizes | {"model_type": family}),
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def same(ours: Any, theirs: Any) -> None:
    """Equal labels in equal order, scores within fp32 rounding."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(other, list):
            same(mine, other)
        else:
            assert mine["label"] == other["label"]
            # fp32 sums in another order, and random weights that amplify it
            assert mine["score"] == pytest.approx(other["score"], abs=3e-5)
            assert mine["exit_layer"] == SIZES["num_hidden_layers"]


ROWS: list[Any] = [
    *CORPUS[:6], "", " ", "x", "a\0b", "\ufeff", "\u202e\U0001f600\u0301", "<pad> good <pad>", "[SEP] [PAD] </s>",
    {"text": CORPUS[0]}, {"text": CORPUS[0], "text_pair": CORPUS[1]}, {"text": "", "text_pair": CORPUS[1]},
    {"text": CORPUS[0], "text_pair": ""}, {"text": "", "text_pair": ""}, {"text": "<pad>", "text_pair": "[PAD]"},
]  # fmt: skip


@pytest.mark.parametrize(("labels", "problem"), PROBLEMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_the_pipeline(tmp_path: Path, family: str, labels: int, problem: str | None) -> None:
    pipe = save(tmp_path, family, labels, problem)
    engine = pfengine.load(tmp_path)
    assert engine.exit_layers == (SIZES["num_hidden_layers"],)
    same(engine.classify(ROWS), [pipe(row) if isinstance(row, dict) else pipe(row)[0] for row in ROWS])
    for top_k in (2, None):
        same(engine.classify(ROWS, top_k=top_k), [pipe(row, top_k=top_k) for row in ROWS])
    pair = (CORPUS[2], CORPUS[4])
    same(engine.classify(pair), [pipe({"text": pair[0], "text_pair": pair[1]})])
    same(engine.classify(CORPUS[3]), pipe(CORPUS[3]))


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_equal_the_pipeline_with_truncation(tmp_path: Path, family: str) -> None:
    pipe = save(tmp_path, family)
    engine = pfengine.load(tmp_path)
    assert engine.max_length == 64
    pairs = [(LONG, CORPUS[0]), (CORPUS[0], LONG), (LONG, LONG)]
    rows = [LONG, *({"text": text, "text_pair": pair} for text, pair in pairs)]
    with pytest.warns(UserWarning, match="4 of 5 rows had more than 64 tokens"):
        ours = engine.classify([*rows, CORPUS[0]])
    theirs = [pipe(row, truncation=True, max_length=64) for row in [*rows, CORPUS[0]]]
    same(ours, [row[0] if isinstance(row, list) else row for row in theirs])


def test_the_cut_of_very_long_texts_changes_nothing(tmp_path: Path) -> None:
    pipe = save(tmp_path, "bert")
    engine = pfengine.load(tmp_path)
    spaces = "very" + " " * 10_000 + "good film"  # few tokens behind a long way
    one_word = "x" * 20_000
    rows = [LONG * 30, spaces, one_word, "a " + one_word + " b"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = engine.classify(rows)
    same(ours, [pipe(row, truncation=True, max_length=64)[0] for row in rows])


def test_directory_with_vocab_txt_alone(tmp_path: Path) -> None:
    pipe = save(tmp_path, "bert")
    vocabulary = sorted(pipe.tokenizer.get_vocab().items(), key=lambda item: item[1])
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in vocabulary) + "\n")
    same(pfengine.load(tmp_path).classify(CORPUS[:6]), [pipe(row)[0] for row in CORPUS[:6]])


def test_directory_without_tokenizer_takes_ids(tmp_path: Path) -> None:
    pipe = save(tmp_path, "bert")
    for file in tmp_path.glob("*token*"):
        file.unlink()
    engine = pfengine.load(tmp_path)
    ids = pipe.tokenizer(CORPUS[0])["input_ids"]
    same(engine.classify({"input_ids": ids}), pipe(CORPUS[0]))
    with pytest.raises(pfengine.InputError, match="row 0: is text, but the checkpoint has no tokenizer"):
        engine.classify(CORPUS[0])


def test_half_precision_weights_load_as_fp32(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, "bert").tokenizer
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).half()
    model.save_pretrained(tmp_path)
    pipe = transformers.pipeline("text-classification", model=model.float(), tokenizer=tokenizer, device="cpu")
    same(pfengine.load(tmp_path).classify(CORPUS[:3]), [pipe(row)[0] for row in CORPUS[:3]])


def test_token_types_of_a_pair_matter_and_are_right(tmp_path: Path) -> None:
    """Where the tokenizer's class is named and where it is not: both as transformers decides."""
    pipe = save(tmp_path, "bert")
    pair = {"text": CORPUS[0], "text_pair": CORPUS[1]}
    ids = pipe.tokenizer(**pair)
    assert 1 in ids["token_type_ids"]
    engine = pfengine.load(tmp_path)
    same(engine.classify(pair), [pipe(pair)])
    untyped = engine.classify({"input_ids": ids["input_ids"]})
    assert untyped[0]["score"] != pytest.approx(pipe(pair)["score"], abs=1e-4)
    typed = {"input_ids": ids["input_ids"], "token_type_ids": ids["token_type_ids"]}
    same(engine.classify(typed), [pipe(pair)])
