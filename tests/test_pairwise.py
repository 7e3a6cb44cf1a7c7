"""The cover of options that quick tests use: every pair, few cases, the same ones each time."""

from __future__ import annotations

from itertools import combinations

import pytest

from .heads.variants import PAST_FUTURE
from .pairwise import Case, every, pairs_first, pairwise

PRODUCTS = {
    "two": every(a=(1, 2, 3), b=("x", "y")),
    "none in common": every(a=(0, False), b=(1, True, "1"), c=(None, ())),
    "six": every(a=range(2), b=range(3), c=range(4), d=range(2), e=range(3), f=range(2)),
    "a head's": PAST_FUTURE,  # some combinations are not allowed
}


@pytest.mark.parametrize("cases", PRODUCTS.values(), ids=PRODUCTS)
def test_every_pair_occurs(cases: list[Case]) -> None:
    chosen = pairwise(cases)
    for one, other in combinations(cases[0], 2):
        wanted = {(repr(case[one]), repr(case[other])) for case in cases}
        assert {(repr(case[one]), repr(case[other])) for case in chosen} == wanted
    assert all(any(case is one for one in cases) for case in chosen)
    assert chosen == pairwise(cases), "the same ones each time"


def test_a_cover_is_small() -> None:
    assert len(pairwise(PRODUCTS["six"])) <= 16  # of 288; 4 x 3 at least
    assert len(pairwise(PAST_FUTURE)) <= 27  # of 252; 6 x 3 at least


def test_one_option_alone_is_not_lost() -> None:
    with pytest.raises(ValueError, match="at least two options"):
        pairwise(every(a=(1, 2)))
    assert pairwise([]) == []


@pytest.mark.slow
def test_what_is_beyond_the_cover_is_wide() -> None:
    cases = PRODUCTS["six"]
    parameters = pairs_first(cases)
    quick = [parameter.values[0] for parameter in parameters if not parameter.marks]
    assert quick == [case for case in cases if case in pairwise(cases)]
    assert [parameter.values[0] for parameter in parameters] == cases
    assert parameters[0].id == "0-0-0-0-0-0"
