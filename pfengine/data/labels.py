"""What the labels of a file mean: class names, class ids, or scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..messages import warn
from .columns import LABELS, clipped, listed
from .examples import Example

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_WRITTEN_AS_FLOAT = re.compile(r"(-?[0-9]{1,18})\.0*")
_NUMERAL = re.compile(r"(?<![A-Za-z0-9])[0-9]+(?![A-Za-z0-9])")  # a number within a name, not part of a word
_DEFAULT = re.compile(r"LABEL_([0-9]{1,18})")  # what transformers calls a class without a name


class LabelSet(str):
    """The labels of a row that may have several or none: a JSON list, as the file has it."""

    __slots__ = ()


def as_text(value: Any) -> str | None:
    """A label of a file as text; None where it is missing. ConfigError for a value that cannot be a label.

    A list of names or numbers becomes a `LabelSet`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, tuple)) and all(isinstance(each, (str, int, float)) for each in value):
        return LabelSet(json.dumps(list(value)))
    if isinstance(value, (list, dict, bytes, tuple, set)):
        raise ConfigError(f"has a label of type {type(value).__name__}; it must be a name or a number")
    return str(value).strip() or None


def number(text: str | None) -> float | None:
    """The finite number that a text represents, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def names_of(found: Iterable[str]) -> tuple[str, ...]:
    """Class names from the labels of a file: as they are written, in numeric order where all are integers, else sorted.

    No names, which means regression, where all are numbers and at least one has a fraction. Integers that are all
    written as floats ("1.0", as pandas does) are those integers. ConfigError for lists of labels.
    """
    names = set(found)
    if lists := [name for name in names if isinstance(name, LabelSet)]:
        raise ConfigError(f"the labels are lists, such as {clipped(min(lists))}; a model learns one label per row here")
    numbers = [number(name) for name in names]
    if None not in numbers and any(value != math.floor(value) for value in numbers if value is not None):
        return ()
    whole = {name: _whole(name) for name in names}
    if all(_INTEGER.fullmatch(name) for name in whole.values()):
        written = sorted(name for name in names if whole[name] != name)
        if written:
            classes = ", ".join(f"{_whole(name)} for {name}" for name in written[:3])
            warn(f"labels are read as classes: {classes}; in a file of scores at least one has a fraction")
        return tuple(sorted(set(whole.values()), key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_as(found: Sequence[str], labels: Sequence[str]) -> dict[str, int] | None:
    """The id of each label of a file, for a model with these label names; None where they do not fit.

    All labels are read in one way, the first that fits all: as names; as names in another spelling (integers written as
    floats, True for true, 3 for LABEL_3 and the other way round); as ids. They are not read as ids where a name is a
    number, or contains a number other than its id, as "1 star" does at id 0.
    """
    for plain in (str.strip, _plain):
        ids = {plain(name): i for i, name in enumerate(labels)}
        if len(ids) == len(labels) and all(plain(label) in ids for label in found):
            return {label: ids[plain(label)] for label in found}
    numbers = {str(i): i for i in range(len(labels))}
    known = {_plain(name) for name in labels}
    bare = all(number(name) is None for name in known)
    counted = all(numeral == str(i) for i, name in enumerate(labels) for numeral in _NUMERAL.findall(name))
    if bare and counted and all(_plain(label) in numbers for label in found):
        return {label: numbers[_plain(label)] for label in found}
    return None


def label_ids(examples: Sequence[Example], labels: tuple[str, ...], file: str) -> list[int]:
    """Labels as ids, as `read_as` reads them. ConfigError names the first row whose label does not fit."""
    found: dict[str, int] = {}  # label -> first row
    for row, example in enumerate(examples):
        if example.label is None:
            raise ConfigError(f"{file} has no column with labels; name it, or give one of {', '.join(LABELS)}")
        found.setdefault(example.label, row)
    ids = fitted(found, labels, file)
    return [ids[example.label] for example in examples if example.label is not None]


def fitted(found: dict[str, int], labels: tuple[str, ...], file: str) -> dict[str, int]:
    """The id of each label, as `read_as` reads them; found: label -> first row. ConfigError names one that is wrong."""
    for label, row in found.items():
        if isinstance(label, LabelSet):
            raise ConfigError(f"{file}, row {row}: has a list of labels, {clipped(label)}; the model gives one per row")
    ids = read_as(list(found), labels)
    if ids is None:
        raise ConfigError(f"{file}, {_misfit(found, labels)}")
    return ids


def _misfit(found: dict[str, int], labels: tuple[str, ...]) -> str:
    """Where and why labels do not fit: the first that is not a name or, where none is a name, not an id."""
    known, ids = {_plain(name) for name in labels}, {str(i) for i in range(len(labels))}
    fitting = next((label for label in found if _plain(label) in known), None)
    numbered = any(number(name) is not None for name in known)
    allowed = known if fitting is not None or numbered else ids
    wrong = next((label for label in found if _plain(label) not in allowed), next(iter(found)))
    reason = f"row {found[wrong]}: label {clipped(wrong)!r} is not one of {listed(labels)}"
    if wrong == "-1":
        return f"{reason}: the rows are not labelled"
    if fitting is not None and wrong in ids and not numbered:
        return f"{reason}, while row {found[fitting]} has {clipped(fitting)!r}; label all rows by name, or all by id"
    return reason


def label_sets(examples: Sequence[Example], labels: tuple[str, ...], file: str) -> np.ndarray:
    """Which labels each row has, bool [rows, labels].

    A row's labels are a list of names, or of ids, as `read_as` reads them, or of as many floats as there are labels,
    above 1/2 for those it has. Text is a list in JSON, or names with | between them. ConfigError names the first row
    that does not fit.
    """
    found, rows = dict[str, int](), list[list[str]]()
    truth = np.zeros((len(examples), len(labels)), bool)
    for row, example in enumerate(examples):
        if example.label is None:
            raise ConfigError(f"{file} has no column with labels; name it, or give one of {', '.join(LABELS)}")
        values = _members(example.label)
        if values and all(isinstance(value, float) for value in values):
            if len(values) != len(labels):
                raise ConfigError(f"{file}, row {row}: has {len(values)} numbers, and the model {len(labels)} labels")
            truth[row] = np.array(values) > 0.5
            values = []
        if len(values) == len(labels) and all(value in (0, 1) for value in values):
            raise ConfigError(
                f"{file}, row {row}: {clipped(example.label)} may be ids or zeros and ones; give floats, or names"
            )
        rows.append([str(value) for value in values])
        for name in rows[-1]:
            found.setdefault(name, row)
    ids = fitted(found, labels, file)
    for row, names in enumerate(rows):
        truth[row, [ids[name] for name in names]] = True
    return truth


def _members(label: str) -> list[Any]:
    try:
        values = json.loads(label) if label.startswith("[") else None
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, list) else [name.strip() for name in label.split("|") if name.strip()]


def scores(examples: Sequence[Example], file: str) -> list[float]:
    """Labels as numbers, for regression. ConfigError names the first that is not a finite number."""
    values = []
    for row, example in enumerate(examples):
        value = number(example.label)
        if value is None:
            raise ConfigError(f"{file}, row {row}: label {clipped(str(example.label))!r} is not a finite number")
        values.append(value)
    return values


def _whole(label: str) -> str:
    match = _WRITTEN_AS_FLOAT.fullmatch(label)
    return str(int(match[1])) if match else label


def _plain(label: str) -> str:
    """One spelling for labels that mean the same."""
    label = label.strip()
    if label in ("true", "false"):
        return label.capitalize()
    match = _DEFAULT.fullmatch(label)
    return match[1] if match else _whole(label)
