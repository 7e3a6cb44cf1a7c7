"""One collection of results for a run, written as they come and shown at its end."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from . import knobs
from .results import NAME, OUT_OF_TIME, Results

# Linux alone has triton; so the kernels, and who imports them, are imported where they are needed
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]
_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    from . import report
    from .plan import plan

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell in the background; it is how time is called
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found = request.config.stash[_RESULTS] = Results()
    for item in plan():
        found.miss(item.what, OUT_OF_TIME)  # unless it is reached
    yield found
    found.write(report.markdown)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(_RESULTS, None)
    if found is None:
        return
    from . import goals

    line = terminalreporter.write_line
    line("")
    if knobs.DRY:
        line("dry run: its times mean nothing, and are held against no goal")
    for goal in goals.GOALS if not knobs.DRY else ():
        line(f"{goals.reached(goal, found.data):>24}  {goal.goal:>8}  {goal.what}")
    for what, why in found.data["not_measured"].items():
        line(f"not measured: {what}: {why}")
    line(f"{found.directory / NAME}.json and .md")
