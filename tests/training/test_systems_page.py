"""docs/systems.md names every system of the table, and its head and criterion as the table has them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from pfengine import TrainingConfig
from pfengine.exits import CRITERIA
from pfengine.exits.text import name_of
from pfengine.heads import HEADS
from pfengine.training.systems import SYSTEMS

PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()
TABLE = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([a-z-]+)", cell)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_in_the_table_with_its_head_and_criterion(name: str) -> None:
    own_row = [row for row in TABLE if name in quoted(row[0])]
    (row,) = own_row or [row for row in TABLE if name in quoted(row[3])]  # the form that its authors' code trains
    head, criterion = (quoted(cell) for cell in row[1:3])
    own = TrainingConfig("", "", "", system=name).head(False, 12)
    assert not head or own["type"] in head
    assert not criterion or name_of(SYSTEMS[name].criterion_of(own) or "") in criterion
    assert f"--system {name}" in PAGE.replace("\n", " ") or name in ("linear", "seqlab-early-exit")


def test_heads_and_criteria_are_those_of_the_tables() -> None:
    known = {*HEADS, "attentive"}  # FastBERT's comes with its system
    assert {head for row in TABLE for head in quoted(row[1])} <= known
    assert {criterion for row in TABLE for criterion in quoted(row[2])} <= set(CRITERIA)


def test_what_it_names_exists() -> None:
    """Modules and classes, in the sections of systems that are in the table."""
    found = 0
    for section in PAGE.split("\n## ")[1:]:
        systems = re.findall(r"--system\s+([a-z-]+)", section)
        if not systems or not set(systems) <= set(SYSTEMS):
            continue
        for name in re.findall(r"`((?:training|heads|exits)\.[\w.]+)`", section):
            module, *rest = name.split(".")
            thing = importlib.import_module(f"pfengine.{module}")
            for part in rest:
                thing = getattr(thing, part)
            found += 1
    assert found > 10
