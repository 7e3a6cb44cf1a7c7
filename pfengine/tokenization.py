"""Inputs -> rows of token ids -> ragged batches within a token budget, by length.

Works on the `tokenizers` library alone; transformers is imported only for directories without tokenizer.json.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from .batch import Packed
from .config import BackboneConfig
from .errors import CheckpointError, ConfigError, InputError, InputTypeError

# Tokenizer classes whose `model_input_names` in transformers 5 have token_type_ids.
_WITH_TYPES = ("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer")
_LONG_TEXT = 64  # characters a token; longer texts are cut before tokenising, where that cannot change the result
ROW_FORMS = "a string, a tuple of two strings, {'text', 'text_pair'} or {'input_ids', 'token_type_ids'}"


class Text(NamedTuple):
    text: str
    pair: str | None


class Unreadable(NamedTuple):
    """In the place of a row whose source could not be read; becomes that row's error."""

    reason: str


class Row(NamedTuple):
    """One tokenised row."""

    row_id: int
    ids: np.ndarray  # int64 [tokens]
    types: np.ndarray | None  # int64 [tokens], None for all zero
    truncated: bool


def is_single(inputs: Any) -> bool:
    """Is `inputs` one row rather than an iterable of rows?"""
    return isinstance(inputs, (str, bytes, Mapping)) or _is_pair(inputs)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def parse(row_id: int, value: Any) -> Text | Row:
    """One row of the input in any of its forms; InputTypeError or InputError names the row."""
    if isinstance(value, str):
        return Text(_clean(value), None)
    if _is_pair(value):
        return Text(_clean(value[0]), _clean(value[1]) or None)
    if isinstance(value, Unreadable):
        raise InputError(row_id, value.reason)
    if not isinstance(value, Mapping):
        raise InputTypeError(row_id, f"is {_describe(value)}; a row is {ROW_FORMS}")
    keys = set(value)
    if "text" in keys and keys <= {"text", "text_pair"}:
        text, pair = value["text"], value.get("text_pair")
        if not isinstance(text, str) or not isinstance(pair, (str, type(None))):
            wrong = "text" if not isinstance(text, str) else "text_pair"
            raise InputTypeError(row_id, f"'{wrong}' is {_describe(value[wrong])}; it must be a string")
        return Text(_clean(text), _clean(pair or "") or None)
    if "input_ids" in keys and keys <= {"input_ids", "token_type_ids"}:
        ids = _integers(row_id, "input_ids", value["input_ids"])
        types = value.get("token_type_ids")
        types = None if types is None else _integers(row_id, "token_type_ids", types)
        if types is not None and len(types) != len(ids):
            raise InputError(row_id, f"has {len(ids)} input_ids but {len(types)} token_type_ids")
        return Row(row_id, ids, types, truncated=False)
    raise InputTypeError(row_id, f"is a dict with the keys {sorted(map(str, keys))}; a row is {ROW_FORMS}")


def _describe(value: Any) -> str:
    return "a tuple that is no pair of strings" if isinstance(value, tuple) else f"of type {type(value).__name__}"


def _clean(text: str) -> str:
    """Lone surrogates are no text: U+FFFD in their place, as every UTF-8 encoder would write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _integers(row_id: int, key: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        array = np.empty((0, 0))
    if array.ndim == 1 and array.size == 0:
        raise InputError(row_id, f"'{key}' is empty; give at least one token")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputTypeError(row_id, f"'{key}' must be a flat sequence of integers")
    return array.astype(np.int64)


class Tokenizer:
    """Tokenises texts and checks ids for one model.

    files: contents of the tokenizer's files by name, as `checkpoint.tokenizer_files` reads them; None for none.
    max_length: longest row in tokens; longer texts are truncated (the longer part of a pair first).
    """

    def __init__(
        self, files: Mapping[str, bytes] | None, config: BackboneConfig, max_length: int | None = None
    ) -> None:
        self.config = config
        self.backend: tokenizers.Tokenizer | None = None
        settings: dict[str, Any] = {}
        if files is not None:
            self.backend, settings = _load(files, config)
        limit = settings.get("model_max_length")
        if not isinstance(limit, (int, float)) or not limit > 0:
            limit = config.max_tokens
        self.max_length = max_length or int(min(limit, config.max_tokens))  # 1e30 where nobody set it
        self.uses_types = _uses_types(settings, config)
        self.side = settings.get("truncation_side", "right")
        if self.backend is not None:
            special = self.backend.num_special_tokens_to_add(False)
            if self.max_length <= special:
                raise ConfigError(
                    f"max_length is {self.max_length}, but the tokenizer adds {special} tokens of its own"
                )
            self.backend.no_padding()
            self.backend.enable_truncation(self.max_length, direction=self.side)

    def encode(self, rows: Iterable[tuple[int, Any]]) -> list[Row | InputError]:
        """Tokenise (row id, row) pairs; a bad row gives its error in its place and does not touch the others."""
        out: list[Row | InputError] = []
        texts: list[tuple[int, int, Text]] = []
        for row_id, value in rows:
            try:
                parsed = parse(row_id, value)
                if isinstance(parsed, Text):
                    if self.backend is None:
                        raise InputError(
                            row_id, "is text, but the checkpoint has no tokenizer; give {'input_ids': [...]}"
                        )
                    texts.append((len(out), row_id, parsed))
                    out.append(InputError(row_id, "was not tokenised"))
                else:
                    out.append(self._checked(self._cut_ids(parsed)))
            except InputError as error:
                out.append(error)
        for (place, row_id, text), encoding in zip(texts, self._encode_texts([t for *_, t in texts]), strict=True):
            try:
                if isinstance(encoding, Exception):
                    raise InputError(row_id, f"cannot be tokenised: {encoding}")
                out[place] = self._checked(self._row(row_id, text, encoding))
            except InputError as error:
                out[place] = error
        return out

    def _encode_texts(self, texts: list[Text]) -> list[Any]:
        """An encoding for each text, or the exception it caused."""
        whole = [text.text if text.pair is None else (text.text, text.pair) for text in texts]
        short, limit = list(whole), _LONG_TEXT * self.max_length
        for i, text in enumerate(texts):
            cut = text.pair is None and self.side == "right" and len(text.text) > limit
            if cut and (end := text.text.rfind(" ", limit // 2, limit)) > 0:
                short[i] = text.text[:end]
        encodings = self._try(short)
        for i, encoding in enumerate(encodings):
            if short[i] is not whole[i] and (isinstance(encoding, Exception) or not encoding.overflowing):
                encodings[i] = self._try([whole[i]])[0]  # the end that was cut off was needed after all
        return encodings

    def _try(self, texts: list[Any]) -> list[Any]:
        if self.backend is None or not texts:
            return []
        try:
            return self.backend.encode_batch_fast(texts)
        except Exception as error:  # tokenizers raises bare Exception, for all texts because of one
            return [error] if len(texts) == 1 else [self._try([text])[0] for text in texts]

    def _row(self, row_id: int, text: Text, encoding: Any) -> Row:
        if not encoding.ids:
            raise InputError(row_id, "gives no tokens; this tokenizer adds none of its own")
        if len(encoding.ids) > self.max_length:  # a pair has more special tokens than a text
            raise InputError(row_id, f"is a pair, which max_length = {self.max_length} leaves no room for")
        types = np.array(encoding.type_ids, dtype=np.int64) if self.uses_types and text.pair is not None else None
        return Row(row_id, np.array(encoding.ids, dtype=np.int64), types, bool(encoding.overflowing))

    def _cut_ids(self, row: Row) -> Row:
        limit = self.max_length
        if len(row.ids) <= limit:
            return row
        return Row(row.row_id, row.ids[:limit], None if row.types is None else row.types[:limit], truncated=True)

    def _checked(self, row: Row) -> Row:
        for name, values, size in (("token", row.ids, self.config.vocab_size),
                                   ("token type", row.types, self.config.type_vocab_size)):  # fmt: skip
            if values is not None and (values.min() < 0 or values.max() >= size):
                wrong = values.min() if values.min() < 0 else values.max()
                raise InputError(row.row_id, f"has {name} id {wrong}; this model's are 0 to {size - 1}")
        return row


def _load(files: Mapping[str, bytes], config: BackboneConfig) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    settings: dict[str, Any] = {}
    try:
        if "tokenizer_config.json" in files:
            settings = json.loads(files["tokenizer_config.json"])
            if not isinstance(settings, dict) or settings.get("truncation_side", "right") not in ("left", "right"):
                raise ValueError("tokenizer_config.json must be a JSON object, its 'truncation_side' left or right")
        if "tokenizer.json" in files:
            return tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()), settings
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError("tokenizer", [f"the files cannot be read: {error}"]) from None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise CheckpointError(
            "tokenizer",
            ["tokenizer.json is missing; install transformers, which can build it from the other tokenizer files"],
        ) from None
    with tempfile.TemporaryDirectory() as path:
        for name, content in ({**files} | {"config.json": json.dumps(config.raw).encode()}).items():
            (Path(path) / name).write_bytes(content)
        try:
            backend = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            ).backend_tokenizer
        except Exception as error:
            raise CheckpointError(
                "tokenizer", [f"transformers cannot build a fast tokenizer from the files: {error}"]
            ) from None
    return backend, settings


def _uses_types(settings: dict[str, Any], config: BackboneConfig) -> bool:
    """Does the second text of a pair get token type 1? As transformers 5 decides, so that pairs score the same."""
    names = settings.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    name = settings.get("tokenizer_class") or config.raw.get("tokenizer_class")
    return config.family.needs_type_ids if name is None else str(name).removesuffix("Fast") in _WITH_TYPES


def pack(rows: Sequence[Row], config: BackboneConfig) -> Packed:
    """Rows end to end, as they come."""
    lengths = [len(row.ids) for row in rows]
    cu_seqlens = np.array([0, *itertools.accumulate(lengths)], dtype=np.int32)
    ids = np.concatenate([row.ids for row in rows]) if rows else np.empty(0, dtype=np.int64)
    types = np.zeros(len(ids), dtype=np.int64)
    for row, start in zip(rows, cu_seqlens, strict=False):
        if row.types is not None:
            types[start : start + len(row.ids)] = row.types
    if config.family.positions_after_pad:  # padding ids inside a row keep the padding position, as in transformers
        pad = config.pad_token_id
        starts = np.repeat(cu_seqlens[:-1], lengths)
        seen = np.concatenate([[0], np.cumsum(ids != pad)])
        positions = np.where(ids != pad, pad + seen[1:] - seen[starts], pad)
    else:
        positions = np.concatenate([np.arange(length) for length in lengths]) if rows else ids
    row_ids = np.array([row.row_id for row in rows], dtype=np.int64)
    return Packed(ids, positions, types, cu_seqlens, row_ids)


def batches(rows: Sequence[Row], batch_tokens: int, batch_size: int | None = None) -> Iterator[list[Row]]:
    """Rows sorted by length, cut into batches of at most `batch_tokens` tokens and `batch_size` rows.

    A row longer than the budget is a batch of its own.
    """
    batch: list[Row] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (tokens + len(row.ids) > batch_tokens or len(batch) == batch_size):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.ids)
    if batch:
        yield batch
