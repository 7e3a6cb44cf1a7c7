"""A few cases out of a product of options, in which nevertheless every pair of options occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Case = dict[str, Any]


def every(**options: Iterable[Any]) -> list[Case]:
    """The product of the options, as one dict per case."""
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


def pairs(case: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    return set(combinations(sorted((key, repr(value)) for key, value in case.items()), 2))


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Those of `cases` that, taken greedily in order, hold every pair of options that any of `cases` holds.

    Only given cases are chosen, so that combinations that are not allowed are simply not given. Each step takes the
    case with the most pairs not yet seen, the earliest where several have as many.
    """
    if any(len(case) < 2 for case in cases):
        raise ValueError("a pairwise cover needs at least two options")
    waiting = [pairs(case) for case in cases]
    missing, chosen = set().union(*waiting), []
    while missing:
        new = [len(held & missing) for held in waiting]
        best = new.index(max(new))
        chosen.append(cases[best])
        missing -= waiting[best]
    return chosen


def pairs_first(
    cases: Sequence[Case],
    values: Callable[[Case], tuple[Any, ...]] = lambda case: (case,),
    name: Callable[[Case], str] = lambda case: "-".join(map(str, case.values())),
) -> list[Any]:
    """All cases as pytest's parameters; those beyond the pairwise cover are marked `wide`.

    values: what a test is given of a case. name: the case's id.
    """
    chosen = {id(case) for case in pairwise(cases)}
    return [
        pytest.param(*values(case), id=name(case), marks=() if id(case) in chosen else pytest.mark.wide)
        for case in cases
    ]
