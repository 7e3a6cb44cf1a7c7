"""The forms a row may have: text, pair, words, dict of text, and encoding as Hugging Face tokenizers give it.

Whatever a row is, and whatever its methods raise, no other row is affected.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError, InputError, InputTypeError

MOST_IDS = 1 << 17  # items read from a sequence that may be endless; no model takes rows this long
ROW_FORMS = (
    "a string, a tuple of two strings, {'text', 'text_pair'}, {'words'} or {'input_ids', 'token_type_ids', "
    "'attention_mask'}"
)
_SECOND_TEXTS = ("pair", "textpair", "text_b", "text2", "text_2", "sentence2", "hypothesis", "second_text")
_NOT_TAKEN = ("position_ids", "inputs_embeds")  # transformers uses these; we refuse them rather than ignore them
_KINDS = {"attention_mask": "iub"}  # kinds of numpy dtype; of all other arrays "iu"
_INT = {int}
_BYTES = (bytes, bytearray, memoryview)


class Knob(NamedTuple):
    """A row's own threshold or speed-up, as it was given, unchecked."""

    name: str  # "threshold" or "speedup"
    value: Any


MISSING = object()  # the number of a row where the numbers given beside the rows ended before it


class Given(NamedTuple):
    """A row with a number that was given beside it. A number in the row itself takes precedence."""

    row: Any
    knob: Knob


class Text(NamedTuple):
    text: str
    pair: str | None
    knob: Knob | None = None
    words: tuple[str, ...] | None = None  # the words that `text` joins with single spaces; None: plain text


class Unreadable(NamedTuple):
    """Stands for a row that could not be read from its source; it becomes that row's error."""

    reason: str


class Row(NamedTuple):
    """One tokenised row."""

    row_id: int
    ids: np.ndarray  # int64 [tokens]
    types: np.ndarray | None  # int64 [tokens], None for all zero
    truncated: bool
    knob: Knob | None = None
    threshold: float | None = None  # what the knob stands for, nan: full depth; see `exits.selection.Selection`
    first_pieces: np.ndarray | None = None  # int32 [words], rising: the place in ids of each word's first piece
    pieces: np.ndarray | None = None  # int32 [words]: how many pieces each word has, at least 1
    spans: np.ndarray | None = None  # int32 [words, 2]: first character of each word in `text`, and the one after it
    text: str | None = None
    first_word: int = 0  # how many of the words that were given come before these, where truncation has cut them off
    source: Text | Row | None = None  # the text, or the ids as they were given; None where the row is what was given

    @property
    def word_count(self) -> int:
        """How many words it has, for a head that scores tokens: one per token where none are marked."""
        return len(self.ids if self.first_pieces is None else self.first_pieces)


def is_single(inputs: Any) -> bool:
    """Is `inputs` one row rather than an iterable of rows?"""
    return isinstance(inputs, (str, *_BYTES, Mapping)) or _is_pair(inputs)


def rows_of(inputs: Any) -> Iterator[Any]:
    """The rows of `inputs`, one row or an iterable of rows. Raises ConfigError where its items are not rows."""
    if is_single(inputs):
        return iter([inputs])
    names = {kind.__name__ for kind in type(inputs).__mro__}  # pandas, polars and pyarrow need not be installed
    if names & {"DataFrame", "LazyFrame", "Table", "RecordBatch"} and hasattr(inputs, "columns"):
        raise ConfigError(
            f"inputs is a {type(inputs).__name__}, which iterates over columns; give the texts of one, df['text']"
        )
    if isinstance(inputs, (set, frozenset)):
        raise ConfigError("inputs is a set, which has no order for the answers; give a list")
    if hasattr(inputs, "readline"):
        raise ConfigError(
            "inputs is an open file, whose lines end in line breaks; give (line.rstrip('\\n') for line in file)"
        )
    try:
        return iter(inputs)
    except TypeError:
        return iter([inputs])  # `parse` refuses it as row 0, and names the forms a row may have


def size(row: Any) -> int:
    """About how many characters or ids a row has; 0 where that cannot be known: `parse` will refuse the row."""
    if type(row) is str:
        return len(row)
    if type(row) is Given:
        return size(row.row)
    try:
        if type(row) is dict and type(ids := row.get("input_ids")) is list:  # the general way takes ten times as long
            return len(ids)
        if type(row) is dict and len(row) == 1:
            (part,) = row.values()
            return _length(part)
        parts = row.values() if isinstance(row, Mapping) else row if isinstance(row, tuple) else (row,)
        return sum(map(_length, itertools.islice(parts, 10)))
    except Exception:  # a row's own methods may raise anything
        return 0


def _length(part: Any) -> int:
    try:
        if type(part) is list and part and type(part[0]) is str:
            return sum(map(len, part)) + len(part)
        return len(part)
    except Exception:
        return 0


def parse(row_id: int, value: Any, lists: bool = False) -> Text | Row:
    """One row of the input, in any of its forms. Raises InputTypeError or InputError, which name the row.

    lists: may a row be a list of words?
    """
    if type(value) is Given:
        parsed = parse(row_id, value.row, lists)
        return parsed if parsed.knob is not None else parsed._replace(knob=value.knob)
    if lists and isinstance(value, list):
        value = {"words": value}
    try:
        return Text(clean(value), None) if isinstance(value, str) else _parse(row_id, value)
    except InputError:
        raise
    except Exception as error:  # raised by the row's own methods
        raise InputTypeError(row_id, f"{_describe(value)} cannot be read: it raises {type(error).__name__}") from None


def _parse(row_id: int, value: Any) -> Text | Row:
    if _is_pair(value):
        return Text(clean(value[0]), clean(value[1]) or None)
    if isinstance(value, Unreadable):
        raise InputError(row_id, value.reason)
    if isinstance(value, _BYTES):
        raise InputTypeError(row_id, f"is {_describe(value)}; decode it to a string first")
    if isinstance(value, (Text, Row)):  # `Row.source`, which another model reads again
        return value
    if not isinstance(value, Mapping):
        raise InputTypeError(row_id, f"is {_describe(value)}; a row is {ROW_FORMS}")
    if "input_ids" in value:
        return _encoding(row_id, value)
    if "words" in value:
        return _words(row_id, value)
    if "text" in value:
        return _record(row_id, value)
    keys = sorted(str(key) for key in itertools.islice(value, 10))
    raise InputTypeError(row_id, f"is a dict with the keys {keys}; a row is {ROW_FORMS}")


def _record(row_id: int, value: Mapping[str, Any]) -> Text:
    """{"text", ["text_pair"]}, and the row's knob; other keys, such as a data set's label, are ignored."""
    text, pair = value["text"], value.get("text_pair")
    for key, part in (("text", text), ("text_pair", pair)):
        if not isinstance(part, str) and (key == "text" or part is not None):
            hint = "; give a dict for each row" if isinstance(part, (list, tuple)) else ""
            raise InputTypeError(row_id, f"'{key}' is {_describe(part)}; it must be a string{hint}")
    if len(value) > 1 and pair is None:
        for key in _SECOND_TEXTS:
            if isinstance(value.get(key), str):
                raise InputError(row_id, f"has 'text' and '{key}'; the second text of a pair goes by 'text_pair'")
    return Text(clean(text), clean(pair or "") or None, _knob(row_id, value))


def _words(row_id: int, value: Mapping[str, Any]) -> Text:
    """{"words"} and the row's knob; other keys, such as a data set's labels, are ignored."""
    words = value["words"]
    if "text" in value:
        raise InputError(row_id, "has 'words' and 'text'; leave one of them out")
    if not isinstance(words, (list, tuple)):
        raise InputTypeError(row_id, f"'words' is {_describe(words)}; it must be a list of strings")
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise InputTypeError(row_id, f"'words' has at {i} what is {_describe(word)}; it must be a list of strings")
    cleaned = tuple(map(clean, words))
    return Text(" ".join(cleaned), None, _knob(row_id, value), cleaned)


def _knob(row_id: int, value: Mapping[str, Any]) -> Knob | None:
    """The row's own "threshold" or "speedup", if any; a value of None counts as none."""
    given = [Knob(name, value[name]) for name in ("threshold", "speedup") if value.get(name) is not None]
    if len(given) == 2:
        raise InputError(row_id, "has 'threshold' and 'speedup'; leave one of them out")
    return given[0] if given else None


def _encoding(row_id: int, value: Mapping[str, Any]) -> Row:
    """{"input_ids", ["token_type_ids"], ["attention_mask"], ["first_pieces", "pieces"]} of one row.

    Padding at its end is cut off.
    """
    for key in ("text", "words", *_NOT_TAKEN) if len(value) > 1 else ():
        if key in value:
            raise InputTypeError(row_id, f"has 'input_ids' and '{key}'; leave one of them out")
    ids = _integers(row_id, "input_ids", value["input_ids"])
    types, mask = value.get("token_type_ids"), value.get("attention_mask")
    if types is not None:
        types = _integers(row_id, "token_type_ids", types, len(ids))
    if mask is not None:
        mask = _integers(row_id, "attention_mask", mask, len(ids))
        end = int(np.count_nonzero(mask))
        if end == 0 or not (mask[:end] == 1).all():
            raise InputError(row_id, "'attention_mask' must be 1 for a row's tokens, and 0 only for padding after them")
        ids, types = ids[:end], None if types is None else types[:end]
    if len(value) == 1:
        return Row(row_id, ids, types, truncated=False)
    row = Row(row_id, ids, types, truncated=False, knob=_knob(row_id, value))
    return _with_words(row, value) if "first_pieces" in value or "pieces" in value else row


def _with_words(row: Row, value: Mapping[str, Any]) -> Row:
    """The row with the words that "first_pieces" and "pieces" say. There may be none."""
    row_id, first, pieces = row.row_id, value.get("first_pieces"), value.get("pieces")
    if first is None or pieces is None:
        missing, there = ("first_pieces", "pieces") if first is None else ("pieces", "first_pieces")
        raise InputError(row_id, f"has '{there}' but no '{missing}'; give both, or neither")
    first = _integers(row_id, "first_pieces", first, empty=True)
    pieces = _integers(row_id, "pieces", pieces, empty=True)
    if len(first) != len(pieces):
        raise InputError(row_id, f"has {len(first)} first_pieces but {len(pieces)} pieces; give one of each per word")
    if (pieces < 1).any():
        word = int((pieces < 1).argmax())
        raise InputError(row_id, f"'pieces' is {pieces[word]} for word {word}; every word has at least 1 piece")
    ends = np.append(first[1:], len(row.ids))
    wrong = (first < 0) | (first >= len(row.ids)) | (pieces > ends - first)
    if wrong.any():
        word = int(wrong.argmax())
        raise InputError(
            row_id,
            f"word {word} is {pieces[word]} pieces from place {first[word]} on; words must follow one another within "
            f"the {len(row.ids)} input_ids",
        )
    return row._replace(first_pieces=first.astype(np.int32), pieces=pieces.astype(np.int32))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _describe(value: Any) -> str:
    kind = type(value)
    return "a tuple that is no pair of strings" if issubclass(kind, tuple) else f"of type {kind.__name__}"


def clean(text: str) -> str:
    """Lone surrogates, which are not text, become U+FFFD, as UTF-8 encoders write them."""
    if type(text) is not str:
        text = str.__str__(text)  # of a subclass, which may override anything
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _integers(row_id: int, key: str, values: Any, length: int | None = None, empty: bool = False) -> np.ndarray:
    """int64 [n] of a sequence or array of integers, or of a batch of one such row.

    length: what n must be. empty: may n be 0?
    """
    try:
        found = _array(values)
    except Exception:  # its methods and items may raise anything
        found = None
    if found is not None and found.ndim == 2 and len(found) != 1:
        raise InputTypeError(row_id, f"'{key}' holds {len(found)} rows; give a dict for each row")
    if found is not None and found.ndim == 2:
        found = found[0]
    if found is None or found.ndim != 1 or (found.size and found.dtype.kind not in _KINDS.get(key, "iu")):
        raise InputTypeError(row_id, f"'{key}' must be a flat sequence of integers")
    if found.size == 0 and not empty:
        raise InputError(row_id, f"'{key}' is empty; give at least one token")
    if length is not None and len(found) != length:
        raise InputError(row_id, f"has {length} input_ids but {len(found)} {key}")
    return found.astype(np.int64)  # a copy, as the array is the caller's


def _array(values: Any) -> np.ndarray | None:
    """`values` as an array; None where they are not a sequence. Of a sequence at most MOST_IDS items are read."""
    if type(values) is not list and type(values) is not tuple:
        if hasattr(type(values), "__array__"):
            return np.asarray(values)
        if isinstance(values, (str, *_BYTES)) or not isinstance(values, Sequence):
            return None
        values = list(itertools.islice(values, MOST_IDS))
    kinds = set(map(type, values))
    if kinds == _INT or not values:
        return np.array(values, np.int64)
    if kinds == {list}:  # a batch
        return np.empty((len(values), 0)) if len(values) > 1 else np.array([_array(values[0])])
    numbers = np.array(array.array("q", values))  # TypeError for all but integers
    return numbers.astype(bool) if bool in kinds else numbers
