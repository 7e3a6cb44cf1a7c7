"""Building a tokenizer from tokenizer.json and the files beside it, with the `tokenizers` library alone.

transformers does not use tokenizer.json as it is. Most classes keep only its vocabulary, and build the rest from
tokenizer_config.json and their own defaults (`tokenizer_classes`); then tokens are added from up to three files. This
module follows it step by step with the same objects. Anything whose effect is not known exactly is NotKnown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

import tokenizers
from tokenizers import AddedToken

from .errors import CheckpointError
from .tokenizer_classes import SPECIAL, TokenizerClass

T = TypeVar("T")
JSON, SETTINGS, ADDED, MAP = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
OLD_EXTRA, EXTRA = "additional_special_tokens", "extra_special_tokens"
# Fields of tokenizer_config.json that are read here, or that change no ids in any of CLASSES.
_FIELDS = {
    *SPECIAL, OLD_EXTRA, EXTRA, "tokenizer_class", "model_max_length", "max_len", "max_length", "model_input_names",
    "truncation_side", "padding_side", "split_special_tokens", "added_tokens_decoder", "do_lower_case",
    "strip_accents", "tokenize_chinese_chars", "keep_accents", "add_prefix_space", "trim_offsets", "add_bos_token",
    "add_eos_token", "clean_up_tokenization_spaces", "name_or_path", "special_tokens_map_file", "tokenizer_file",
    "vocab_file", "merges_file", "processor_class", "backend", "is_local", "local_files_only", "chat_template",
    "errors", "do_basic_tokenize", "never_split", "sp_model_kwargs", "remove_space", "legacy", "stride",
    "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id", "use_fast", "from_slow", "full_tokenizer_file",
    "files_loaded",
}  # fmt: skip


class Built(NamedTuple):
    """A tokenizer, and the settings that transformers calls it with."""

    backend: tokenizers.Tokenizer
    side: str  # the end that truncation cuts off
    longest: Any  # model_max_length as it is written
    types: bool  # whether the model is given token types
    types_lost: bool  # transformers 4 gave them, and no file says whether to


class NotKnown(Exception):
    """A file holds something whose effect only transformers knows; the message names file and field."""


class TokenizerBuilder:
    """`from_pretrained` of one class, step by step as in transformers, with the objects it would use."""

    def __init__(self, files: Mapping[str, bytes], settings: dict[str, Any], kind: TokenizerClass, path: Any) -> None:
        self.files, self.settings, self.kind, self.path = files, settings, kind, path
        self.source: tokenizers.Tokenizer  # tokenizer.json, without vocabulary where the class builds its own
        self.added: dict[int, AddedToken]  # its added tokens

    def build(self) -> Built:
        """The tokenizer. CheckpointError for files that cannot be read, NotKnown for what only transformers knows."""
        unknown = sorted(set(self.settings) - _FIELDS)
        if unknown:
            raise NotKnown(f"{SETTINGS}: '{unknown[0]}' is not a field that pfengine knows")
        file = JSON
        try:
            model = self._read()
            file = "a file beside tokenizer.json"
            given, decoder = self._given()
            options = self._options(given)
            file = f"{JSON} with what is beside it"
            backend = self.source if model is None else self._new(model, options)
            self._add(backend, decoder, options, given)
            guarded(self.kind.end, backend, options)
        except (TypeError, ValueError) as error:  # CheckpointError is one
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(self.path, [f"{file} cannot be read: {error}"]) from None
        backend.encode_special_tokens = self._choice("split_special_tokens", False, (False, True))
        self._choice("padding_side", "right", ("right", "left"))
        side = self.source.truncation["direction"] if self.source.truncation else "right"
        names = self.settings.get("model_input_names", ["token_type_ids"] if self.kind.types else [])
        if not isinstance(names, list):
            self._fault(f"{SETTINGS}: 'model_input_names' is {names!r:.80}; it must be a list of names")
        types = "token_type_ids" in names
        return Built(
            backend,
            self._choice("truncation_side", side, ("right", "left")),
            self.settings.get("model_max_length", self.settings.get("max_len")),
            types,
            self.kind.types_4 and not types and "model_input_names" not in self.settings,
        )

    def _fault(self, fault: str) -> NoReturn:
        raise CheckpointError(self.path, [fault])

    def _choice(self, key: str, default: Any, allowed: tuple[Any, Any]) -> Any:
        value = self.settings.get(key, default)
        if type(value) is not type(allowed[0]) or value not in allowed:
            self._fault(f"{SETTINGS}: '{key}' is {value!r:.80}; it must be {allowed[0]!r} or {allowed[1]!r}")
        return value

    def _read(self) -> dict[str, Any] | None:
        """Read tokenizer.json; None where the class uses it unchanged."""
        if self.kind.start is None:
            self.source = guarded(tokenizers.Tokenizer.from_str, self.files[JSON].decode("utf-8"))
            if ADDED in self.files:  # then the ids in tokenizer.json count, right or wrong
                self.added = _added(read_object(self.files, JSON, self.path))
            else:
                self.added = dict(self.source.get_added_tokens_decoder())
            return None
        raw = read_object(self.files, JSON, self.path)
        model = raw["model"] if isinstance(raw.get("model"), dict) else {}
        if not isinstance(model.get("vocab"), self.kind.vocabulary_type):
            raise NotKnown(f"{JSON}: 'model.vocab' is not one that {self.kind.name} takes")
        least: dict[str, Any] = {"vocab": {}}
        if self.kind.vocabulary_type is list:
            least = {"vocab": [["x", 0.0]], "unk_id": 0}
        elif "merges" in model:
            least["merges"] = []
        self.source = guarded(
            tokenizers.Tokenizer.from_str, json.dumps(raw | {"added_tokens": [], "model": model | least})
        )
        self.added = _added(raw)
        return raw

    def _given(self) -> tuple[dict[str, Any], dict[int, AddedToken]]:
        """The special tokens that the files name, and the tokens to add by id."""
        given = {key: value for key, value in self.settings.items() if key in (*SPECIAL, OLD_EXTRA, EXTRA)}
        if OLD_EXTRA in given and not given.get(EXTRA):
            given[EXTRA] = given.pop(OLD_EXTRA)
        decoder: dict[int, AddedToken] = {}
        source = dict.fromkeys(given, SETTINGS)
        if "added_tokens_decoder" in self.settings:
            tokens = self.settings["added_tokens_decoder"]
            if not isinstance(tokens, dict):
                self._fault(f"{SETTINGS}: 'added_tokens_decoder' is not an object of tokens by id")
            for key, token in tokens.items():
                decoder[_id(key, SETTINGS)] = _token(token, f"{SETTINGS}: 'added_tokens_decoder'")
        else:  # as saved until 2023
            if MAP in self.files:
                for key, value in read_object(self.files, MAP, self.path).items():
                    if key not in (*SPECIAL, OLD_EXTRA):
                        raise NotKnown(f"{MAP}: '{key}' is not a field that pfengine knows")
                    if isinstance(value, dict):
                        value = _token(value | {"special": True}, f"{MAP}: '{key}'")
                    given[key], source[key] = value, MAP
            if ADDED in self.files:
                special = {str(given[key]) for key in SPECIAL if given.get(key)} | set(map(str, given.get(EXTRA) or []))
                for token, key in read_object(self.files, ADDED, self.path).items():
                    if type(key) is not int:
                        raise NotKnown(f"{ADDED}: {token!r:.80} has the id {key!r:.80}")
                    is_special = token in special
                    decoder[key] = AddedToken(token, normalized=not is_special, special=is_special)
            decoder |= self.added
        named = {str(token): token for token in decoder.values()}
        for key in SPECIAL:
            if given.get(key) is not None:
                token = _token(given[key], f"{source[key]}: '{key}'", "__type")
                given[key] = named.get(str(token), token)
        return given, decoder

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Special tokens and options of the class, with its defaults where no file sets them."""
        options: dict[str, Any] = dict(self.kind.special)
        for key in SPECIAL:
            if key in given:
                if given[key] is None and key in options:
                    raise NotKnown(f"{SETTINGS}: '{key}' is null")
                options[key] = given[key]
        if isinstance(options.get("mask_token"), str) and self.kind.mask_takes_space:
            options["mask_token"] = AddedToken(options["mask_token"], lstrip=True, special=True)
        if self.source.padding and "pad_token" not in options:
            options["pad_token"] = self.source.padding["pad_token"]
        for key, default in self.kind.options.items():
            options[key] = self.settings.get(key, default)
            if not isinstance(options[key], bool) and options[key] is not default:
                raise NotKnown(f"{SETTINGS}: '{key}' is {options[key]!r:.80}, not true or false")
        return options

    def _new(self, raw: dict[str, Any], options: dict[str, Any]) -> tokenizers.Tokenizer:
        """The tokenizer of the class over the vocabulary, without added tokens."""
        vocabulary = raw["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = list(map(tuple, vocabulary))
        assert self.kind.start is not None
        backend = guarded(self.kind.start, vocabulary, raw, options)
        if self.source.post_processor is not None:
            backend.post_processor = self.source.post_processor
        return backend

    def _add(
        self, backend: tokenizers.Tokenizer, decoder: dict[int, AddedToken], options: dict[str, Any], given: Any
    ) -> None:
        """Add the tokens of the files, which may change existing ones, then the special tokens that are missing."""
        extra = given[EXTRA] if EXTRA in given else given.get(OLD_EXTRA)
        if extra is None and EXTRA not in given:
            extra = self.kind.extra
        if not isinstance(extra or [], (list, tuple)):
            raise NotKnown(f"{SETTINGS}: '{EXTRA}' is not a list")
        present = backend.get_added_tokens_decoder().values()
        added: list[Any] = [decoder[key] for key in sorted(decoder)]
        names = {str(token) for token in (*present, *added)}
        special = [options[key] for key in SPECIAL if options.get(key) is not None]
        for token in (*special, *(_token(token, f"{SETTINGS}: '{EXTRA}'", "__type") for token in extra or ())):
            if str(token) not in names and token not in added:
                added.append(token)
        for i, token in enumerate(added):
            if isinstance(token, str):
                added[i] = AddedToken(token, special=True)
            elif not token.special and str(token) in map(str, special):
                token.special = True
        guarded(backend.add_tokens, added)


def _added(raw: dict[str, Any]) -> dict[int, AddedToken]:
    """The added tokens of tokenizer.json by id."""
    added = {}
    for token in raw.get("added_tokens") or []:
        if not isinstance(token, dict) or "id" not in token:
            raise NotKnown(f"{JSON}: 'added_tokens' has a token without 'id'")
        fields = {key: value for key, value in token.items() if key != "id"}
        added[_id(token["id"], JSON)] = _token(fields, f"{JSON}: 'added_tokens'")
    return added


def _id(value: Any, file: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise NotKnown(f"{file}: a token has the id {value!r:.80}") from None


def _token(value: Any, where: str, mark: str | None = None) -> Any:
    """A token from JSON: a string, or the fields of an AddedToken with `mark` among them; without mark only fields."""
    if mark is not None and isinstance(value, (str, AddedToken)):
        return value
    if not isinstance(value, dict) or (mark is not None and value.get(mark) != "AddedToken"):
        raise NotKnown(f"{where} is or has {value!r:.80}, which is not a token")
    try:
        return AddedToken(**{key: item for key, item in value.items() if key != mark})
    except (TypeError, ValueError) as error:
        raise NotKnown(f"{where} has a token that cannot be read ({error})") from None


def guarded(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of the call; errors of `tokenizers`, including panics, become a ValueError."""
    try:
        return call(*arguments, **options)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; not an Exception
            raise
        raise ValueError(f"the tokenizers library failed: {error}") from None


def read_object(files: Mapping[str, bytes], name: str, path: Any) -> dict[str, Any]:
    try:
        value = json.loads(files[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, [f"{name} cannot be read: {error}"]) from None
    if not isinstance(value, dict):
        raise CheckpointError(path, [f"{name} is not a JSON object"])
    return value
