"""The table of systems: how each is built, trained and converted. What the table says is what runs.

A new one is an entry at the end of its recipe's file, and the file is named below; or from outside the package

    register(System("mine", "what it is", head={"type": "linear", "pooler": "none"}, recipe=Mine, criterion="margin"))

after which `train(system="mine")`, `attach(system="mine")` and, where it has a converter, `convert(system="mine")` take
it.
"""

from __future__ import annotations

from ..registry import Registry
from . import (
    beem,
    berxit,
    cascadebert,
    cosee,
    deebert,
    elasticbert,
    elbert,
    fastbert,
    leebert,
    own,
    pabee,
    past_future,
    plain,
    righttool,
    student,
    tagging,
    voting,
)
from .system import Converter, System

__all__ = ["SYSTEMS", "Converter", "System", "register"]

SYSTEMS: Registry[System] = Registry("system")
"""Systems by name. Filled by `register`."""


def register(system: System) -> System:
    """Put a system into the table. Returns it.

    Raises TypeError for what is no `System`, ValueError for a name that another one has or that is not of small
    letters, digits, - and _.
    """
    if not isinstance(system, System):
        raise TypeError(f"{system!r} is no System")
    SYSTEMS.add(system.name, system)
    return system


for _recipe in (  # in the order of `--help`
    own, past_future, plain, deebert, fastbert, righttool, pabee, elbert, voting, leebert, cascadebert, berxit, tagging,
    elasticbert, student, cosee, beem,
):  # fmt: skip
    for _system in _recipe.SYSTEMS:
        register(_system)
