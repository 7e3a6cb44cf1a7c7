"""Entities from tags, by the rule of conlleval and seqeval."""

from __future__ import annotations

import pytest

from pfengine.entities import Entity, entities, names_entities

# Each is the answer of seqeval 1.2.2's get_entities, whose last word is part of the entity.
CASES = {
    "": [],
    "O O": [],
    "B-A I-A": [("A", 0, 1)],
    "B-A B-A I-A O": [("A", 0, 0), ("A", 1, 2)],
    "I-A I-A": [("A", 0, 1)],  # IOB1
    "I-A B-A": [("A", 0, 0), ("A", 1, 1)],
    "B-A I-B O I-A": [("A", 0, 0), ("B", 1, 1), ("A", 3, 3)],
    "B-A-B I-A-B": [("A-B", 0, 1)],
    "S-A B-A I-A E-A E-A I-A": [("A", 0, 0), ("A", 1, 3), ("A", 4, 4), ("A", 5, 5)],
    "O E-B I-A": [("B", 1, 1), ("A", 2, 2)],
}


@pytest.mark.parametrize("text", CASES)
def test_entities(text: str) -> None:
    assert entities(text.split()) == [Entity(kind, first, last + 1) for kind, first, last in CASES[text]]


def test_other_schemes() -> None:
    assert entities(["U-A", "B-A", "L-A", "I-A"]) == [("A", 0, 1), ("A", 1, 3), ("A", 3, 4)]
    assert entities(["NOUN", "I-A", "VERB"]) == [("A", 1, 2)]
    assert names_entities(["O", "B-A", "I-A"])
    assert not names_entities(["NOUN", "O"])
    assert not names_entities(["O"])


def test_random_tags_beside_seqeval() -> None:
    """seqeval is no dependency: its only release has no wheel, and its build fails with pip 23 and older."""
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    import random

    draw = random.Random(0)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "AB")]
    for _ in range(2000):
        row = draw.choices(tags, k=draw.randint(1, 8))
        assert [(e.type, e.first, e.last - 1) for e in entities(row)] == seqeval.get_entities(row)
