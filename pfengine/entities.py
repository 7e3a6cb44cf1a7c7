"""Entities from the tags of words: IOB1, IOB2, IOBES and BILOU, as conlleval reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PREFIXES = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}  # BILOU calls last and unit what others do not


class Entity(NamedTuple):
    """Words `first` to `last` - 1 of a row are one entity of this type."""

    type: str
    first: int
    last: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one row, from a tag per word: "B-PER", "I-PER", "O" and so on.

    An entity begins at B and S, after E and S, and wherever the type changes. So I without a B before it begins one
    too, as in IOB1 and in wrong answers. This is the rule of conlleval, and of seqeval where no scheme is named. A tag
    that has none of the prefixes B, I, E, S, L and U is outside of entities.
    """
    found: list[Entity] = []
    before, kind, first = "O", "", 0
    for place, tag in enumerate((*tags, "O")):
        prefix, own = split_tag(tag)
        if before != "O" and (prefix in "OBS" or before in "ES" or own != kind):
            found.append(Entity(kind, first, place))
            before = "O"
        if before == "O":
            first = place
        before, kind = prefix, own
    return found


def split_tag(tag: str) -> tuple[str, str]:
    """The prefix of a tag, one of B, I, E, S and O, and its type."""
    prefix, _, kind = tag.partition("-")
    return (_PREFIXES[prefix], kind) if prefix in _PREFIXES else ("O", "")


def names_entities(labels: Iterable[str]) -> bool:
    """Do these label names mark entities? Each is "O" or has a prefix and a type, and not all are "O"."""
    kinds = [split_tag(label) for label in labels if label != "O"]
    return bool(kinds) and all(prefix != "O" and kind for prefix, kind in kinds)
