"""Wrong queries of a layer, and results that may not lie where they are to go, are exceptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pfengine import extension

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

from .native_arguments import GOOD, HIDDEN, Arguments, C, at, block, kept, queries_of, room


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    kept.clear()


def on_itself(kind: Any, *targets: int) -> Arguments:
    """A layer whose results go where its input is."""
    states = room(5, HIDDEN)
    return {
        "x": states,
        "out": states,
        "kind": kind,
        "queries": len(targets),
        "targets": at(torch.tensor(targets).int()),
    }


WRONG: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "a query of another row": ("run_block", lambda: queries_of(block(), 2, 3, 4)),
    "a query before its row": ("run_block", lambda: queries_of(block(), 1, 1, 4)),
    "a query after the last": ("run_block", lambda: queries_of(block(), 1, 2, 5)),
    "a query below 0": ("run_block", lambda: queries_of(block(), -1, 2, 4)),
    "a query twice": ("run_block", lambda: queries_of(block(), 1, 4, 4)),
    "queries that fall": ("run_block", lambda: queries_of(block(), 1, 4, 3)),
    "bounds that fall": ("run_block", lambda: queries_of(block(), 1, 2, 4, bounds=(0, 4, 3))),
    "bounds from below 0": ("run_block", lambda: queries_of(block(), 1, 2, 4, bounds=(-1, 1, 3))),
    "bounds far away": ("run_block", lambda: queries_of(block(), 1, 2, 4, bounds=(0, 2**31 - 1, 3))),
    "bounds of fewer queries": ("run_block", lambda: queries_of(block(), 1, 2, 4, bounds=(0, 1, 2))),
    "bounds of more queries": ("run_block", lambda: queries_of(block(), 1, 2, 4, bounds=(0, 1, 4))),
    "as many first tokens as queries": ("run_block", lambda: {"kind": C.Queries.firsts}),
    "as many tokens as queries": ("run_block", lambda: {"kind": C.Queries.all}),
    "targets that fall": ("run_block", lambda: {"targets": at(torch.tensor([0, 3, 2]).int())}),
    "a target twice": ("run_block", lambda: {"targets": at(torch.tensor([0, 2, 2]).int())}),
    "a target below 0": ("run_block", lambda: {"targets": at(torch.tensor([-1, 2, 3]).int())}),
    "a target after the last": ("run_block", lambda: {"targets": at(torch.tensor([0, 2, 5]).int())}),
    "too few rows for the queries": ("run_block", lambda: {"targets": 0, "out_rows": 2}),
    "in place, but elsewhere": ("run_block", lambda: on_itself(C.Queries.list, 1, 2, 3)),
    "in place, but side by side": ("run_block", lambda: on_itself(C.Queries.list, 1, 2, 4) | {"targets": 0}),
    "in place, first tokens elsewhere": ("run_block", lambda: on_itself(C.Queries.firsts, 0, 3)),
    "half in place": ("run_block", lambda: {"x": (states := room(9, HIDDEN)), "out": states + 4 * HIDDEN}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(case: str) -> None:
    name, change = WRONG[case]
    good = GOOD[name]()
    getattr(C, name)(**good)
    with pytest.raises(ValueError, match=r".") as caught:
        getattr(C, name)(**good | change())
    print(caught.value)


@pytest.mark.parametrize(
    ("kind", "targets"), [(C.Queries.list, [1, 2, 4]), (C.Queries.firsts, [0, 2]), (C.Queries.all, range(5))]
)
def test_in_place(kind: Any, targets: list[int]) -> None:
    C.run_block(**queries_of(block(), 1, 2, 4) | on_itself(kind, *targets))
