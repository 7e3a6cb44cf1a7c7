"""Every field of a tokenizer's files has the effect it has in transformers, or loading refuses and names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import pfengine

from .tokenizers_made import ADDED, JSON, MAP, SETTINGS, load, same_as_transformers, token, write

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
    "another class": {SETTINGS: {"tokenizer_class": "FunnelTokenizer"}},
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
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str, fixed: dict[str, str], change: str
) -> None:
    files = dict(CHANGES[change])
    files[SETTINGS] = fixed | files.get(SETTINGS, {})
    path = write(Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x")), files)
    same_as_transformers(path, asked=change in ASKED and not (fixed and change == "case as text"))


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_files_on_which_transformers_fails_are_refused(
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str, change: str
) -> None:
    path = write(Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x")), WRONG[change])
    with pytest.raises(Exception):  # noqa: B017
        transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)("a", truncation=True, max_length=9)
    with pytest.raises(pfengine.CheckpointError, match=rf"{path}: .*\.json") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "e5-small-en-L12-H384"])
def test_published_tokenizers(shared: Path, model: str) -> None:
    same_as_transformers(shared / "weights" / model, asked=False)
