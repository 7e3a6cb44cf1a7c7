"""Which suites run, what is written at the end, and the exits of a trained checkpoint, measured once per batch size."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import report
from .interleave import interleave
from .knobs import AT_THE_END, WriteLine
from .overview import Clock, Overview
from .peers import contestants, open_checkpoint, read_texts
from .rows import layer_speedup

HERE, OVERVIEW = Path(__file__).parent.resolve(), "test_overview.py"
CLOCK = pytest.StashKey[Clock]()


@functools.cache
def measured(batch_size: int) -> dict[str, Any]:
    """Time every contestant on the same rows, round by round, after a round that checks their answers."""
    ckpt, texts = open_checkpoint(), read_texts()
    calls = contestants(ckpt, batch_size)
    rounds = interleave({name: partial(call, texts) for name, call in calls.items()}, check)
    rows = {
        name: {
            "contestant": name,
            "batch_size": batch_size,
            "median_seconds": rounds.median(name),
            "rows_per_second": len(texts) / rounds.median(name),
            "layer_speedup": layer_speedup(rounds.answers[name][1], ckpt.config["num_hidden_layers"]),
            "wall_clock_speedup": rounds.speedup(name, "pfengine, exits off"),
        }
        for name in calls
    }
    report.EXITS[batch_size] = list(rows.values())
    return {"calls": calls, "texts": texts, "rows": rows}


def check(answers: dict[str, Any]) -> None:
    """Raise unless all contestants give the same answers; then nothing is timed."""
    on, off = answers["pfengine, exits on"], answers["pfengine, exits off"]
    np.testing.assert_array_equal(answers["pfengine, replay"][1], on[1])
    np.testing.assert_allclose(answers["pfengine, replay"][0], on[0])
    np.testing.assert_allclose(answers["transformers eager"][0], off[0], atol=2e-4)
    loop = answers["research loop, batch 1"]
    np.testing.assert_array_equal(loop[1], on[1])
    np.testing.assert_allclose(loop[0], on[0], atol=2e-4)


@pytest.fixture
def interleaved() -> Any:
    return measured


@pytest.fixture(scope="session")
def overview(request: pytest.FixtureRequest) -> Overview:
    from . import overview_report

    found = Overview(request.config.stash[CLOCK])
    request.config.stash[AT_THE_END].append(partial(overview_report.write, found))
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every suite of bench/, half an hour, instead of the overview")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[CLOCK] = Clock()
    writes: list[Callable[[WriteLine], None]] = []
    if not _of_overview(config):
        writes.append(partial(report.write, len(read_texts())))
    config.stash[AT_THE_END] = writes
    if _of_overview(config) and hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True  # one table is enough
        config.option.reportchars = "fEX"  # names the contestants that are missing


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without --full only the overview runs, with it all other suites. A file or folder that is named always runs."""
    if collection_path == HERE / "gpu" and importlib.util.find_spec("triton") is None:
        return True  # only Linux has it
    suite = collection_path.name.startswith("test_") or collection_path == HERE / "gpu"
    if not suite or any(path == collection_path or HERE in path.parents for path in _named(config)):
        return None
    return (collection_path.name == OVERVIEW) == bool(config.getoption("--full")) or None


def _of_overview(config: pytest.Config) -> bool:
    named = [path for path in _named(config) if HERE in path.parents]
    return not config.getoption("--full") and all(path.name == OVERVIEW for path in named)


def _named(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for write in config.stash[AT_THE_END]:
        write(terminalreporter.write_line)
