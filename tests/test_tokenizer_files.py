"""A tokenizer's files give the ids that transformers' AutoTokenizer gives, or a refusal that names file and field."""

from __future__ import annotations

import builtins
import contextlib
import json
import shutil
import warnings
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
    made = tokenizers.Tokenizer(models.Unigram())
    bundled = json.loads((Path(pfengine.__file__).parent / "checkpoints" / "sst2" / "tokenizer.json").read_text())
    frame = json.loads(made.to_str()) | {"normalizer": bundled["normalizer"]}  # which has SentencePiece's charsmap
    made = tokenizers.Tokenizer.from_str(json.dumps(frame))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=list(special), unk_token="<unk>")
    made.train_from_iterator(CORPUS, trainer)
    first, last = ("[CLS]", "[SEP]") if "[CLS]" in special else ("<s>", "</s>")
    ids = [(token, special.index(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1", ids)
    return made


def sentence() -> tokenizers.Tokenizer:
    return unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>")


MADE: dict[str, Callable[[], tokenizers.Tokenizer]] = {  # by config.json's model_type
    "bert": bert, "roberta": roberta, "xlm-roberta": sentence, "camembert": sentence,
    "albert": lambda: unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each family: tokenizer.json, config.json, no tokenizer_config.json."""
    out = {}
    for name, make in MADE.items():
        out[name] = tmp_path_factory.mktemp(name)
        made = make()
        made.save(str(out[name] / "tokenizer.json"))
        size = made.get_vocab_size() + 10  # for tokens to be added
        write(out[name], {"config.json": SIZES | {"model_type": name, "pad_token_id": 1, "vocab_size": size}})
    return out


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
                types = [0] * len(got.ids) if got.types is None else got.types.tolist()
                assert types == expected.get("token_type_ids", [0] * len(got.ids)), (row, length)
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


EXTRA = token("<extra>", special=True)
NEW, MARK = token("newtok"), {"__type": "AddedToken"}
# Fields of tokenizer_config.json, and what changes beside it. In each of them transformers is the judge.
FIELDS: dict[str, dict[str, Any]] = {
    "none": {}, "cased": {"do_lower_case": False}, "uncased": {"do_lower_case": True},
    "accents kept": {"strip_accents": False}, "accents dropped": {"strip_accents": True},
    "cased, accents dropped": {"do_lower_case": False, "strip_accents": True},
    "Chinese in words": {"tokenize_chinese_chars": False}, "ALBERT's accents": {"keep_accents": True},
    "prefix space": {"add_prefix_space": True}, "no prefix space": {"add_prefix_space": False},
    "offsets": {"trim_offsets": False}, "truncates left": {"truncation_side": "left"},
    "pads left": {"padding_side": "left"}, "special tokens split": {"split_special_tokens": True},
    "types": {"model_input_names": ["input_ids", "token_type_ids"]}, "no types": {"model_input_names": ["input_ids"]},
    "cls, sep": {"cls_token": "tok1", "sep_token": "newtok"}, "bos, eos": {"bos_token": "tok1", "eos_token": "newtok"},
    "unk": {"unk_token": "<extra>"}, "mask": {"mask_token": "newtok"}, "pad": {"pad_token": "the"},
    "mask with options": {"mask_token": MARK | token("newtok", lstrip=True)},
    "additional": {"additional_special_tokens": ["<extra>", "newtok"]}, "extra": {"extra_special_tokens": ["<extra>"]},
    "additional with options": {"additional_special_tokens": [MARK | token("<extra>", rstrip=True)]},
    "both": {"additional_special_tokens": ["newtok"], "extra_special_tokens": ["<extra>"]},
    "no additional": {"additional_special_tokens": []}, "null extra": {"extra_special_tokens": None},
    "decoder": {"added_tokens_decoder": {"300": token("newtok", single_word=True), "301": token("tok1", lstrip=True)}},
    "decoder in the vocabulary": {"added_tokens_decoder": {"5": token("NewTok", normalized=False), "4": EXTRA}},
    "decoder without special tokens": {"added_tokens_decoder": {"0": NEW}},
    "empty decoder": {"added_tokens_decoder": {}}, "bos and eos added": {"add_bos_token": True, "add_eos_token": True},
    "as transformers 5 saves": {"backend": "tokenizers", "is_local": True, "local_files_only": False, "errors": "x"},
    "old fields": {"do_basic_tokenize": False, "never_split": ["good"], "name_or_path": "x", "max_len": 9, "stride": 3,
                   "clean_up_tokenization_spaces": True, "legacy": False, "tokenizer_file": "x", "vocab_file": "x",
                   "special_tokens_map_file": "x", "sp_model_kwargs": {"x": 1}, "remove_space": False, "max_length": 5,
                   "truncation_strategy": "only_first", "pad_to_multiple_of": 8, "pad_token_type_id": 1,
                   "processor_class": "x", "use_fast": False, "from_slow": True, "chat_template": "x"},
}  # fmt: skip
JSON, SETTINGS, ADDED, MAP = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"


def changed(**sections: Any) -> dict[str, Any]:
    return {JSON: lambda raw: raw | sections}


FILES: dict[str, dict[str, Any]] = {
    "added_tokens.json": {ADDED: {"newtok": 400, "tok1": 399}},
    "added_tokens.json with a special token": {ADDED: {"<extra>": 9, "newtok": 3}, SETTINGS: {"mask_token": "<extra>"}},
    "special_tokens_map.json": {MAP: {"cls_token": "tok1", "mask_token": token("newtok", lstrip=True),
                                      "additional_special_tokens": ["<extra>"]}},
    "the map wins": {MAP: {"sep_token": "tok1"}, SETTINGS: {"sep_token": "newtok"}},
    "the map is not read": {MAP: {"sep_token": "tok1"}, SETTINGS: {"added_tokens_decoder": {"7": NEW}}},
    "added in tokenizer.json": {JSON: lambda raw: raw | {
        "added_tokens": [*raw["added_tokens"], {"id": 900} | NEW, {"id": 901} | EXTRA]}},
    "a token in two files": {ADDED: {"newtok": 12}, JSON: lambda raw: raw | {
        "added_tokens": [*raw["added_tokens"], {"id": 900} | token("newtok", single_word=True, lstrip=True)]}},
    "lower case in tokenizer.json": changed(normalizer={"type": "Lowercase"}),
    "no normalizer": changed(normalizer=None),
    "other words": changed(pre_tokenizer={"type": "Whitespace"}),
    "no post-processor": changed(post_processor=None),
    "types of a text": {JSON: lambda raw: json.loads(json.dumps(raw).replace('"type_id": 0', '"type_id": 1')),
                        SETTINGS: {"model_input_names": ["input_ids", "token_type_ids"]}},
    "truncation": changed(truncation={"direction": "Left", "max_length": 9, "strategy": "OnlyFirst", "stride": 2}),
    "padding": changed(padding={"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
                                "pad_type_id": 1, "pad_token": "the"}),
    "model without type": {JSON: lambda raw: raw | {"model": {k: v for k, v in raw["model"].items() if k != "type"}}},
    "model with options": {JSON: lambda raw: raw | {
        "model": raw["model"] | {"max_input_chars_per_word": 3, "unk_token": "the", "byte_fallback": True}}},
    "class in config.json": {"config.json": lambda raw: raw | {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "class in both": {"config.json": lambda raw: raw | {"tokenizer_class": "BertTokenizer"},
                      SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {  # what transformers is needed for
    "unknown field": {SETTINGS: {"note": "what nobody knows"}}, "another token": {SETTINGS: {"image_token": "<extra>"}},
    "tokens by name": {SETTINGS: {"extra_special_tokens": {"image_token": "<extra>"}}},
    "another token in the map": {MAP: {"image_token": "<extra>"}},
    "class unknown": {SETTINGS: {"tokenizer_class": "NobodysTokenizer"}},
    "another class": {SETTINGS: {"tokenizer_class": "DistilBertTokenizer"}},
    "remote code": {SETTINGS: {"auto_map": {"AutoTokenizer": [None, "x.Y"]}}},
    "odd id": {ADDED: {"newtok": "x"}}, "no list": {SETTINGS: {"extra_special_tokens": 5}},
    "case as text": {SETTINGS: {"do_lower_case": "no", "add_prefix_space": "no"}},
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {  # transformers fails, and so do we
    "side": {SETTINGS: {"truncation_side": "up"}}, "padding side": {SETTINGS: {"padding_side": None}},
    "decoder": {SETTINGS: {"added_tokens_decoder": [1]}},
    "decoder's ids": {SETTINGS: {"added_tokens_decoder": {"a": NEW}}},
    "decoder's tokens": {SETTINGS: {"added_tokens_decoder": {"9": "newtok"}}}, "token": {SETTINGS: {"cls_token": 5}},
    "unmarked token": {SETTINGS: {"cls_token": NEW}}, "names": {SETTINGS: {"model_input_names": 5}},
    "cut": {JSON: "{"}, "no object": {JSON: "[]"}, "empty file": {JSON: ""}, "no model": {JSON: "{}"},
    "added tokens": {JSON: lambda raw: raw | {"added_tokens": 5}}, "map": {MAP: "[1]"}, "added": {ADDED: "[1]"},
    "normalizer": changed(normalizer={"type": "NoSuch"}), "surrogate": {SETTINGS: '{"cls_token": "\\ud800"}'},
    "mark of bytes": {SETTINGS: "\ufeff{}"}, "many digits": {SETTINGS: f'{{"max_len": {"9" * 5000}}}'},
    "nested": {MAP: '{"cls_token":' * 100_000},
}  # fmt: skip
CHANGES = {name: {SETTINGS: fields} for name, fields in FIELDS.items()} | FILES | ASKED


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("family", "fixed"),
    [("bert", {}), ("roberta", {}), ("xlm-roberta", {}), ("camembert", {}), ("albert", {}),
     ("bert", {"tokenizer_class": "PreTrainedTokenizerFast"}), ("albert", {"tokenizer_class": "TokenizersBackend"})],
    ids=["bert", "roberta", "xlm-roberta", "camembert", "albert", "bert as it stands", "albert as it stands"],
)  # fmt: skip
def test_every_field_has_the_effect_it_has_in_transformers(
    directories: dict[str, Path], tmp_path: Path, family: str, fixed: dict[str, str], change: str
) -> None:
    files = dict(CHANGES[change])
    files[SETTINGS] = fixed | files.get(SETTINGS, {})
    path = write(Path(shutil.copytree(directories[family], tmp_path / "x")), files)
    same_as_transformers(path, asked=change in ASKED and not (fixed and change == "case as text"))


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_files_on_which_transformers_fails_are_refused(
    directories: dict[str, Path], tmp_path: Path, family: str, change: str
) -> None:
    path = write(Path(shutil.copytree(directories[family], tmp_path / "x")), WRONG[change])
    with pytest.raises(Exception):  # noqa: B017
        transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)("a", truncation=True, max_length=9)
    with pytest.raises(pfengine.CheckpointError, match=rf"{path}: .*\.json") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def vocabulary(path: Path, family: str) -> dict[str, Any]:
    """A family's own files in place of tokenizer.json, which is removed; none for SentencePiece."""
    model = json.loads((path / JSON).read_text())["model"]
    (path / JSON).unlink()
    if isinstance(model["vocab"], list):
        return {}
    if family == "bert":
        return {"vocab.txt": "\n".join(sorted(model["vocab"], key=model["vocab"].__getitem__)) + "\n"}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"vocab.json": model["vocab"], "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_familys_own_files_are_read_as_transformers_reads_them(
    directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    path = Path(shutil.copytree(directories[family], tmp_path / "x"))
    write(path, vocabulary(path, family) | {SETTINGS: {"do_lower_case": False, "add_prefix_space": True}})
    same_as_transformers(path, asked=True)


MISSING = "is missing, from which {} reads its vocabulary; add it, or tokenizer.json"
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family's": ("bert", {"vocab.txt": None, "vocab.json": {"the": 0}},
                         "vocab.txt " + MISSING.format("BertTokenizer")),
    "ALBERT's": ("albert", {"vocab.txt": "the\n"}, "spiece.model " + MISSING.format("AlbertTokenizer")),
    "XLM-R's": ("xlm-roberta", {"vocab.json": {"the": 0}, "merges.txt": ""}, "sentencepiece.bpe.model is missing"),
    "of another class": ("bert", {SETTINGS: {"tokenizer_class": "XLMRobertaTokenizerFast"}},
                         "sentencepiece.bpe.model is missing"),
    "of no class": ("bert", {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
                    "tokenizer.json is missing"),
    "of a class unknown here": ("bert", {"vocab.txt": None, "vocab.json": {"the": 0}, SETTINGS: {
        "tokenizer_class": "DistilBertTokenizer"}}, "vocab.txt " + MISSING.format("DistilBertTokenizer")),
    "of a class in Python": ("bert", {SETTINGS: {"tokenizer_class": "BertJapaneseTokenizer"}},
                             "BertJapaneseTokenizer is a tokenizer that works in Python"),
    "empty vocab.txt": ("bert", {"vocab.txt": ""}, "vocab.txt has no words, only special tokens"),
    "special tokens alone": ("bert", {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"}, "vocab.txt has no words"),
    "no special tokens": ("bert", {"vocab.txt": "\n".join(map(str, range(157)))}, "vocab.txt lacks the special token"),
    "too long": ("bert", {"vocab.txt": "\n".join(map(str, range(900)))}, "vocab.txt has token ids up to 899, but"),
    "no merges.txt": ("roberta", {"merges.txt": None}, "merges.txt is missing"),
    "no vocab.json": ("roberta", {"vocab.json": None, "vocab.txt": "a\n"}, "vocab.json is missing"),
    "empty merges.txt": ("roberta", {"merges.txt": ""}, "merges.txt makes 0 of the .* longer tokens of vocab.json"),
    "other merges": ("roberta", {"merges.txt": "q x\nz z\n"}, "merges.txt makes '(qx|zz)', which is not in"),
    "merges that fit in part": ("roberta", {"merges.txt": lambda text: text + "q x\n"}, "merges.txt makes 'qx', which"),
    "merges of bytes": ("roberta", {"merges.txt": "\udcff"}, "merges.txt cannot be read"),
    "vocab.json of a list": ("roberta", {"vocab.json": [1]}, "vocab.json is not a JSON object"),
    "no SentencePiece": ("albert", {"spiece.model": "not one"}, "transformers cannot build a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_wrong_or_missing_vocabulary_is_refused(directories: dict[str, Path], tmp_path: Path, case: str) -> None:
    family, files, message = UNFIT[case]
    path = Path(shutil.copytree(directories[family], tmp_path / "x"))
    own = vocabulary(path, family)
    for name, content in (own | files).items():
        if content is not None:
            content = content(own[name]) if callable(content) else content
            text = content if isinstance(content, str) else json.dumps(content)
            (path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(pfengine.CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", MADE)
def test_tokenizer_json_of_a_larger_model_is_refused(directories: dict[str, Path], tmp_path: Path, family: str) -> None:
    path = Path(shutil.copytree(directories[family], tmp_path / "x"))
    size = len(json.loads((path / JSON).read_text())["model"]["vocab"])
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size}})
    assert load(path)
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size - 1}})
    with pytest.raises(pfengine.CheckpointError, match=f"{JSON} has token ids up to {size - 1}, but this model's are"):
        load(path)


def test_an_added_token_beyond_the_model_costs_the_rows_that_have_it(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(directories["bert"], tmp_path / "x"))
    size = len(json.loads((path / JSON).read_text())["model"]["vocab"])
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size}, ADDED: {"<new>": size}})
    good, bad = load(path).encode([(0, "the film"), (1, "the <new> film")])
    assert isinstance(good, Row)
    assert isinstance(bad, pfengine.InputError)
    assert f"token id {size}" in bad.reason


def test_a_vocabulary_far_smaller_than_the_model_warns(directories: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(directories["bert"], tmp_path / "x"))
    write(path, {"config.json": lambda raw: raw | {"vocab_size": 30_522}})
    with pytest.warns(UserWarning, match=r"tokenizer.json has \d+ tokens, but the model has embeddings for 30522"):
        load(path)


PAIR = ("the film", "very good")
TYPES_LOST = {  # classes whose pairs had types in transformers 4
    "albert": {}, "bert": {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "xlm-roberta": {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
}  # fmt: skip


@pytest.mark.parametrize("family", TYPES_LOST)
def test_types_that_version_5_drops_are_warned_of_once_and_can_be_had(
    directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    def types(**options: Any) -> tuple[list[int], list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokenizer = load(path, **options)
            rows = [row for _ in range(3) for row in tokenizer.encode([(0, "the film"), (1, PAIR)])]
        assert all(isinstance(row, Row) for row in rows)
        assert all(row.types is None for row in rows[::2])
        found = {tuple([0] * len(row.ids) if row.types is None else row.types.tolist()) for row in rows[1::2]}
        return list(*found), [str(warning.message) for warning in caught]

    path = write(Path(shutil.copytree(directories[family], tmp_path / "x")), TYPES_LOST[family])
    for version, warned in ((None, 0), ("5.0.0.dev0", 0), ("4.40.2", 1), ("2.9", 1)):
        write(path, {"config.json": lambda raw, version=version: raw | {"transformers_version": version}})
        values, messages = types()
        assert set(values) == {0}
        assert len(messages) == warned
        assert all("token_types=True" in message and version in message for message in messages)
    assert types(token_types=False) == (values, [])
    typed, messages = types(token_types=True)
    second = typed.index(1)
    assert not messages
    assert typed == [0] * second + [1] * (len(typed) - second)
    names = {"model_input_names": ["input_ids"]}  # a file says so: no doubt, no warning
    write(path, {SETTINGS: TYPES_LOST[family].get(SETTINGS, {}) | names})
    assert types() == (values, [])
    write(path, {"config.json": lambda raw: raw | {"type_vocab_size": 1}})
    with pytest.raises(pfengine.ConfigError, match="token_types is True, but"):
        load(path, token_types=True)


@pytest.mark.parametrize(("family", "given"), [("bert", True), ("roberta", False)])
def test_types_of_families_that_kept_their_ways(
    directories: dict[str, Path], tmp_path: Path, family: str, given: bool
) -> None:
    path = Path(shutil.copytree(directories[family], tmp_path / "x"))
    write(path, {"config.json": lambda raw: raw | {"transformers_version": "4.40.2"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = load(path).encode([(0, PAIR)])
        (without,) = load(path, token_types=False).encode([(0, PAIR)])
    assert isinstance(row, Row)
    assert isinstance(without, Row)
    assert (row.types is not None and 1 in row.types) == given
    assert without.types is None
    with pytest.raises(pfengine.ConfigError, match="token_types is 'yes'"):
        load(path, token_types="yes")
    if not given:
        with pytest.raises(pfengine.ConfigError, match="token_types is True, but"):
            load(path, token_types=True)


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "e5-small-en-L12-H384"])
def test_published_tokenizers(shared: Path, model: str) -> None:
    same_as_transformers(shared / "weights" / model, asked=False)
