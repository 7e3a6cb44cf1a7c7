"""Turning texts and ids into rows of token ids, for one model.

Uses only the `tokenizers` library; transformers is imported for directories whose files need it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from . import id_rows, words
from .batching import batches as batches
from .batching import pack as pack
from .config import BackboneConfig
from .errors import CheckpointError, ConfigError, InputError
from .messages import warn
from .rows import Row as Row
from .rows import Text, clean, parse
from .rows import Unreadable as Unreadable
from .rows import is_single as is_single
from .tokenizer_fields import guarded
from .tokenizer_files import build

_NOT_YET = InputError(0, "was not tokenised")  # stands in the place of a text until it is
_LONG_TEXT = 64  # characters per token; longer texts are cut before tokenising, where it does not change the result


class Tokenizer:
    """Tokenises texts and checks ids for one model.

    files: contents of the tokenizer's files by name, as `checkpoint.tokenizer_files` reads them; None for none.
    max_length: longest row in tokens; longer texts are truncated (the longer part of a pair first).
    token_types: whether the second text of a pair has token type 1; None: as in transformers 5.
    tags: whether the words of plain texts are found too, and a list of strings is a row of words, for a head that
    scores tokens; see `words`.
    path: named by a CheckpointError.

    Raises CheckpointError as `tokenizer_files.build` does, ConfigError for a max_length without room for a token, or
    token_types that tokenizer or model do not have.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None,
        config: BackboneConfig,
        max_length: int | None = None,
        *,
        token_types: bool | None = None,
        tags: bool = False,
        path: Any = "tokenizer",
    ) -> None:
        self.config, self.tags = config, tags
        self.backend: tokenizers.Tokenizer | None = None
        self.max_length, self.side = max_length or config.max_tokens, "right"
        self.single_types = self.pair_types = self._warns = False  # whether they have types other than 0
        if token_types not in (None, True, False):
            raise ConfigError(
                f"token_types is {token_types!r}; it must be True, False, or None for transformers' choice"
            )
        if files is None:
            return
        built = build(files, config, path)
        self.backend, self.side = built.backend, built.side
        limit = built.longest
        if max_length is None and isinstance(limit, (int, float)) and limit > 0:  # 1e30 where it is not set
            self.max_length = int(min(limit, config.max_tokens))
        try:
            self._special = guarded(self.backend.num_special_tokens_to_add, False)
        except ValueError as error:
            raise CheckpointError(path, [f"the tokenizer cannot say what it adds to a text: {error}"]) from None
        single, pair = (self._has_types(*texts) for texts in (("a",), ("a", "a")))
        self._check_room()
        if token_types and (not pair or config.type_vocab_size < 2):
            raise ConfigError(
                "token_types is True, but this tokenizer or model does not tell the texts of a pair apart"
            )
        given = (built.types if token_types is None else token_types) and config.type_vocab_size > 0
        self.single_types, self.pair_types = single and given, pair and given
        version = config.raw.get("transformers_version")
        old = isinstance(version, str) and version.split(".")[0] in ("2", "3", "4")
        self._warns = pair and old and built.types_lost and token_types is None and config.type_vocab_size > 1
        self.backend.no_padding()
        self.backend.enable_truncation(self.max_length, direction=self.side)

    def _has_types(self, *texts: str) -> bool:
        """Whether the tokenizer gives a text, or a pair, types other than 0; True where it fails on these texts."""
        try:
            return any(guarded(self.backend.encode, *texts).type_ids)  # type: ignore[union-attr]
        except ValueError:
            return True

    def encode(self, rows: Iterable[tuple[int, Any]]) -> list[Row | InputError]:
        """Tokenise (row id, row) pairs; a bad row gives an error in its place, and the others are unaffected."""
        out: list[Row | InputError] = []
        texts: list[tuple[int, int, Text]] = []
        rows = list(rows)
        read = id_rows.read(rows, self.max_length, self.config.vocab_size, self.config.type_vocab_size)
        if all(read):
            return read  # type: ignore[return-value]
        for (row_id, value), ready in zip(rows, read, strict=True):
            if ready is not None:
                out.append(ready)
                continue
            try:
                parsed = parse(row_id, value, self.tags)
                if isinstance(parsed, Text):
                    if self.backend is None:
                        raise InputError(
                            row_id, "is text, but the checkpoint has no tokenizer; give {'input_ids': [...]}"
                        )
                    texts.append((len(out), row_id, parsed))
                    out.append(_NOT_YET)
                else:
                    out.append(self._read_ids(parsed))
            except InputError as error:
                out.append(error)
        made: dict[int, Row] = {}
        for (slot, row_id, text), encoding in zip(texts, self._encode_texts([t for *_, t in texts]), strict=True):
            try:
                if isinstance(encoding, Exception):
                    raise InputError(row_id, f"cannot be tokenised: {encoding}")
                out[slot] = made[slot] = self._row(row_id, text, encoding)
            except InputError as error:
                out[slot] = error
        self._refuse_unknown(made, out)
        return out

    def tokens(self, text: str, special: bool = True) -> tuple[str, tokenizers.Encoding]:
        """All tokens of a text, also beyond `max_length`, and the text that their offsets are in.

        special: with the special tokens that the tokenizer adds. Raises InputError where it fails on the text, or the
        checkpoint has no tokenizer.
        """
        if self.backend is None:
            raise InputError(0, "is text, but the checkpoint has no tokenizer")
        text = clean(text)
        try:
            return text, guarded(self._untruncated.encode, text, add_special_tokens=special)
        except ValueError as error:
            raise InputError(0, f"cannot be tokenised: {error}") from None

    def limited(self, max_length: int) -> Tokenizer:
        """The same tokenizer with another longest row, at most `config.max_tokens`.

        Raises ConfigError where that leaves no room for a token.
        """
        other = copy.copy(self)
        other.max_length = max_length
        if self.backend is not None:
            other._check_room()
            other.backend = self._copied()
            other.backend.enable_truncation(max_length, direction=self.side)
        return other

    @functools.cached_property
    def _untruncated(self) -> tokenizers.Tokenizer:
        other = self._copied()
        other.no_truncation()
        return other

    def _copied(self) -> tokenizers.Tokenizer:
        assert self.backend is not None
        other = tokenizers.Tokenizer.from_str(self.backend.to_str())
        other.encode_special_tokens = self.backend.encode_special_tokens  # which the text does not say
        return other

    def _check_room(self) -> None:
        if self.max_length <= self._special:
            raise ConfigError(f"max_length is {self.max_length}, but the tokenizer adds {self._special} special tokens")

    def described(self) -> str:
        """All of the tokenizer but where it cuts texts, "" where there is none. Not while another thread uses it."""
        if self.backend is None:
            return ""
        self.backend.no_truncation()
        text = self.backend.to_str()
        self.backend.enable_truncation(self.max_length, direction=self.side)
        return text

    def again(self, rows: Sequence[Row], before: Tokenizer, alike: bool) -> list[Row | InputError]:
        """Rows that another model's tokenizer made, as this one makes them. A bad row gives an error in its place.

        alike: do both differ in nothing but the longest row? Then only rows that they cut otherwise are read again.
        """
        out: list[Row | InputError] = [*rows]
        anew, kept = [], {}
        for i, row in enumerate(rows):
            uncut = not row.truncated and len(row.ids) <= self.max_length
            if alike and (uncut or self.max_length == before.max_length):
                kept[i] = row
            else:
                anew.append(i)
        self._refuse_unknown(kept, out)
        found = self.encode((rows[i].row_id, rows[i] if rows[i].source is None else rows[i].source) for i in anew)
        for i, row_or_error in zip(anew, found, strict=True):
            out[i] = row_or_error
        return out

    def _encode_texts(self, texts: list[Text]) -> list[Any]:
        """An encoding per text, or the exception it caused."""
        whole = [text.text if text.pair is None else (text.text, text.pair) for text in texts]
        short, limit = list(whole), _LONG_TEXT * self.max_length
        for i, text in enumerate(texts):
            cut = text.pair is None and self.side == "right" and len(text.text) > limit
            if cut and (end := text.text.rfind(" ", limit // 2, limit)) > 0:
                short[i] = text.text[:end]
        if self._warns and any(text.pair is not None for text in texts):
            self._warn()
        offsets = self.tags or any(text.words is not None for text in texts)
        encodings = self._try(short, offsets)
        for i, encoding in enumerate(encodings):
            if short[i] is not whole[i] and (isinstance(encoding, Exception) or not encoding.overflowing):
                encodings[i] = self._try([whole[i]], offsets)[0]  # what was cut off is needed after all
        return encodings

    def _try(self, texts: list[Any], offsets: bool = False) -> list[Any]:
        if self.backend is None or not texts:
            return []
        try:
            return guarded(self.backend.encode_batch if offsets else self.backend.encode_batch_fast, texts)
        except ValueError as error:  # one text fails the whole batch
            return [error] if len(texts) == 1 else [self._try([text], offsets)[0] for text in texts]

    def _row(self, row_id: int, text: Text, encoding: Any) -> Row:
        ids = encoding.ids  # a new list each time
        if not ids:
            raise InputError(row_id, "gives no tokens, and this tokenizer adds none")
        if len(ids) > self.max_length:  # a pair has more special tokens than a single text
            raise InputError(row_id, f"is a pair, which max_length = {self.max_length} leaves no room for")
        found = None
        if self.tags or text.words is not None:
            encoding, found = self._words(row_id, text, encoding)
            ids = encoding.ids
        has_types = self.single_types if text.pair is None else self.pair_types
        types = np.array(encoding.type_ids, dtype=np.int64) if has_types else None
        row = Row(row_id, np.array(ids, np.int64), types, bool(encoding.overflowing), text.knob, source=text)
        return row if found is None else found.put_on(row, text.text)

    def _words(self, row_id: int, text: Text, encoding: Any) -> tuple[Any, words.Pieces]:
        if text.pair is not None:
            raise InputError(row_id, "is a pair of texts; a model that tags words takes one text, or {'words': [...]}")
        backend = self.backend
        assert backend is not None
        try:
            return words.find(text, encoding, backend, lambda other: guarded(backend.encode, other))
        except ValueError as error:
            raise InputError(row_id, f"cannot be tokenised: {error}") from None

    def _read_ids(self, given: Row) -> Row:
        row = given
        if not self.config.type_vocab_size and row.types is not None:  # as in transformers, whose tokenizers give them
            row = row._replace(types=None)
        row = self._checked(self._cut_ids(row))
        return row if row is given else row._replace(source=given)

    def _cut_ids(self, row: Row) -> Row:
        limit = self.max_length
        if len(row.ids) <= limit:
            return row
        types = None if row.types is None else row.types[:limit]
        row = row._replace(ids=row.ids[:limit], types=types, truncated=True)
        if row.first_pieces is None or row.pieces is None:
            return row
        first = row.first_pieces[row.first_pieces < limit]
        return row._replace(first_pieces=first, pieces=np.minimum(row.pieces[: len(first)], limit - first))

    def _checked(self, row: Row) -> Row:
        for name, values, size in (("token", row.ids, self.config.vocab_size),
                                   ("token type", row.types, self.config.type_vocab_size)):  # fmt: skip
            if values is not None and _any_beyond(values, size):
                wrong = values.min() if values.min() < 0 else values.max()
                raise InputError(row.row_id, f"has {name} id {wrong}; this model's are 0 to {size - 1}")
        return row

    def _refuse_unknown(self, rows: Mapping[int, Row], out: list[Row | InputError]) -> None:
        """Put the error of `_checked` in the place of each row that it refuses. All are looked at in one step first.

        rows: by their places in `out`.
        """
        ids, types = [row.ids for row in rows.values()], [row.types for row in rows.values() if row.types is not None]
        looked_at = (ids, self.config.vocab_size), (types, self.config.type_vocab_size)
        if not any(parts and _any_beyond(np.concatenate(parts), size) for parts, size in looked_at):
            return
        for place, row in rows.items():
            try:
                self._checked(row)
            except InputError as error:
                out[place] = error

    def _warn(self) -> None:
        self._warns = False
        warn(
            f"this checkpoint was saved by transformers {self.config.raw['transformers_version']}, which gave the "
            "second text of a pair token type 1; version 5 does not, nor does pfengine, unless it is loaded with "
            "token_types=True (or False, for no warning)"
        )


def _any_beyond(ids: np.ndarray, size: int) -> bool:
    """Is an id outside 0 to size - 1? Without its sign a negative id is larger than any size."""
    return bool(np.maximum.reduce(ids.view(np.uint64)) >= size)
