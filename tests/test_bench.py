"""The benchmark suite runs, and its contestants give the same answers (it refuses to time them otherwise)."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import extension

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # at its end: pfengine stays the one that is installed

from bench import conftest, conversions, core, core_report, models, overview  # noqa: E402
from bench.engines import NAMES, REFERENCE, disagreeing  # noqa: E402
from bench.interleave import interleave  # noqa: E402
from bench.overview import Case, Run, within  # noqa: E402
from bench.rows import fixed_batches, make_rows, padded, replay_layers  # noqa: E402
from bench.tables import write_columns  # noqa: E402
from pfengine.exits import CRITERIA, DataCriterion  # noqa: E402
from pfengine.exits.text import has_knob, parse_form  # noqa: E402


def run_bench(report: Path, *files: str, **environment: str) -> tuple[str, dict[str, Any]]:
    """One round on a few rows -> terminal output and JSON report."""
    result = subprocess.run(
        [Path(sys.executable).parent / "pytest", *files, "--benchmark-only", "-q"],
        cwd=ROOT,
        # not one of several workers, which have no benchmarks
        env={name: value for name, value in os.environ.items() if "XDIST" not in name}
        | {"PFENGINE_BENCH_ROUNDS": "1", "PFENGINE_BENCH_JSON": str(report)}
        | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, json.loads(report.read_text())


def without(package: str, directory: Path) -> dict[str, str]:
    """An environment in which the package is not installed, wherever this runs."""
    directory.mkdir()
    error = f"ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    (directory / f"{package}.py").write_text(f"raise {error}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))}


@pytest.mark.slow
@pytest.mark.skipif(not extension.has_cpu(), reason="int8 needs the compiled kernels")
def test_what_a_person_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output, report = run_bench(
        tmp_path / "bench.json",
        "bench/",
        PFENGINE_BENCH_SECONDS="100000",  # nobody is left out, however busy the machine is
        PFENGINE_BENCH_ROWS="4",
        PFENGINE_BENCH_HIDDEN="48",
        PFENGINE_BENCH_CACHE=str(tmp_path / "cache"),
        PFENGINE_BENCH_CONTESTANTS="transformers fp32,ONNX,pfengine",
        OMP_NUM_THREADS="1",
        **without("onnxruntime", tmp_path / "absent"),
    )
    found = {(r["model"], r["batch"], r["contestant"]): r for r in report["records"]}
    pfengines = [
        f"pfengine{exits} {precision}" for exits in ("", " replay 2x") for precision in ("fp32", "bf16", "int8")
    ]
    for model in ("bundled", "random-48"):
        for batch in (1, 32):
            for name in (*pfengines, "transformers fp32", *["pfengine speedup=2 int8"] * (model == "bundled")):
                record = found.pop((model, batch, name))
                assert 0 < record["p50_ms"] <= record["p99_ms"]
                assert record["rows_per_second"] > 0
                assert record["wall_clock_speedup"] > 0
                assert record["layer_speedup"] == 2 if "replay" in name else record["layer_speedup"] >= 1
                if name == f"pfengine {record['precision']}":
                    assert record["wall_clock_speedup"] == 1
    assert not found
    missing = {(m["model"], m["batch"], m["contestant"]): m["why"] for m in report["missing"]}
    assert missing["random-48", 1, "OpenVINO int8"] == "left out by PFENGINE_BENCH_CONTESTANTS"
    why = missing["bundled", 32, "ONNX Runtime fp32"]
    assert why in ("onnxruntime is not installed", "onnx is not installed")
    assert any(f"ONNX Runtime fp32 - {why}" == " ".join(line.split()[1:]) for line in output.splitlines())
    assert "torch.compile fp32" in output
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert report["machine"]["threads"] == 1
    assert output.count("layer speed-up") == 1  # one table


@pytest.mark.parametrize(
    ("arguments", "full", "suites"),
    [
        (["bench/"], False, {"test_overview"}),
        (
            ["bench/"], True,
            {"test_exits", "test_families", "test_full_depth", "test_head", "test_latency", "test_long_rows",
             "test_quality", "test_reading", "test_replay"},
        ),
        (["bench/test_replay.py::test_replay"], False, {"test_replay"}),
    ],
)  # fmt: skip
def test_which_suites_run(arguments: list[str], full: bool, suites: set[str]) -> None:
    config: Any = SimpleNamespace(
        args=arguments, invocation_params=SimpleNamespace(dir=ROOT), getoption=lambda name: {"--full": full}[name]
    )
    files = [ROOT / "bench" / "test_replay.py"] if "replay" in arguments[0] else (ROOT / "bench").glob("test_*.py")
    assert {file.stem for file in files if not conftest.pytest_ignore_collect(file, config)} == suites
    assert bool(conftest.pytest_ignore_collect(ROOT / "bench" / "gpu", config)) == (
        importlib.util.find_spec("triton") is None or (not full and suites == {"test_overview"})
    )


def test_no_more_rounds_than_there_is_time() -> None:
    calls = {"a": lambda: 1, "b": lambda: 2}
    assert len(interleave(calls, lambda answers: (), rounds=5, seconds=0).seconds["a"]) == 1
    assert len(interleave(calls, lambda answers: (), rounds=5).seconds["b"]) == 5


def test_each_settles_before_it_is_timed() -> None:
    order: list[str] = []
    rounds = interleave({name: partial(order.append, name) for name in "ab"}, lambda answers: (), rounds=2, settle=True)
    assert "".join(order) == "ab" + 2 * "aabb"
    assert len(rounds.seconds["a"]) == 2


def test_peers_too_slow_for_the_time_are_left_out() -> None:
    case, missing = Case("bundled", 32), {}
    runs = {name: Run(lambda rows: lambda: np.zeros(1), per_row) for name, per_row in
            {"pfengine fp32": 0.5, "slow": 0.9, "fast": 0.1}.items()}  # fmt: skip
    within(2 * 32 * 1.5, case, runs, missing)
    assert set(runs) == {"pfengine fp32", "slow", "fast"}
    within(2 * 32 * 0.7, case, runs, missing)
    assert set(runs) == {"pfengine fp32", "fast"}
    within(0.0, case, runs, missing)
    assert set(runs) == {"pfengine fp32"}
    assert missing == {("slow", case): overview.TOO_SLOW, ("fast", case): overview.TOO_SLOW}


def test_conversions_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFENGINE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(conversions, "converted", lambda name, model: False)
    start = time.monotonic()
    assert conversions.convert_within(0.2, ["OpenVINO fp32"], [48]) == {}
    assert time.monotonic() - start < 60
    assert not list(tmp_path.glob("openvino*"))


def test_cells_that_explain_themselves() -> None:
    lines: list[str] = []
    write_columns(["a", "b", "c"], [["x", "y", "1"], ["x", "- a long reason"]], "<<>", lines.append)
    assert lines == ["a  b  c", "x  y  1", "x  - a long reason"]


@pytest.mark.slow
@pytest.mark.skipif(not extension.has_cpu(), reason="int8 needs the compiled kernels")
def test_the_core_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "ROWS", dict.fromkeys(core.ROWS, 5))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = str(Path(pfengine.__file__).parents[1])
    options = {"new": folder, "old-name": "1234567", "out": tmp_path / "core", "cache": tmp_path, "hidden": 24,
               "rounds": 1, "seconds": 0}  # fmt: skip
    core.main([folder, *(f"--{key}={value}" for key, value in options.items())])
    found = json.loads((tmp_path / "core.json").read_text())
    assert [(r["what"], r["rows"]) for r in found["rates"]] == [
        (what, rows) for rows in ("one row", "batch 32", "stream") for what in ("full depth", "replay 2x")
    ]
    assert all(r["same_bits"] and r["ratio"] > 0 for r in found["rates"])
    assert {(r["what"], r["rows"], r["exit"]) for r in found["rules"]} == {
        (what, rows, layer)
        for what in ("Python callable", *(rule.name for rule in core.RULES))
        for rows in ("one row", "batch 32")
        for layer in (6, 12)
    }
    assert all(r["new"] > 0 and r["old"] > 0 for r in found["rules"])
    assert [r["speedup"] > 0 for r in found["tokens"]] == [True]
    assert found["import"]["new"] > 0
    page = (tmp_path / "core.md").read_text()
    assert "commit 1234567" in page
    assert folder not in page + (tmp_path / "core.json").read_text()


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    path = core.forced(tmp_path_factory.mktemp("core"), 24)
    return pfengine.load(path, device="cpu", precision="fp32", criterion="never")


@pytest.mark.parametrize("rule", [core.ENTROPY, *core.RULES], ids=lambda rule: rule.name)
def test_exits_are_forced(forced: pfengine.Engine, rule: core.Case) -> None:
    rows = [{"input_ids": row} for row in make_rows(4)]
    assert set(forced.predict(rows, criterion=rule.leaves).exit_layers) == {core.LEAVES_AT}
    assert set(forced.predict(rows, criterion=rule.stays).exit_layers) == {models.LAYERS}


def test_no_criterion_is_left_out() -> None:
    """But those that need another head."""
    here = {"entropy", *(rule.name for rule in core.RULES)}
    data_ = {name for name, kind in CRITERIA.items() if issubclass(kind, DataCriterion) and has_knob(kind)}
    ours = {name for name in data_ if CRITERIA[name].__module__.startswith("pfengine.")}
    others = {"learned", "binary-confidence"}  # of a head that learns, of several labels per row
    assert ours - here == {name for name in ours if name in others or parse_form(name).tokens()}
    assert here <= ours


def test_each_criterion_is_timed_next_to_the_base() -> None:
    side = object.__new__(core.Side)
    base, *others = (core.Pass(side, run) for run in ("entropy", "a", "b", "c"))
    passes = core.beside(base, others)
    assert [one.run for one in passes] == ["a", "entropy", "b", "c", "entropy"]
    seconds = [[2.0], [1.0], [3.0], [2.0], [4.0]]
    assert core.over_base(base, passes, seconds) == dict(zip(others, (2.0, 3.0, 0.5), strict=True))
    assert core.beside(base, others[:2]) == passes[:3]


def test_the_worst_criterion_is_named() -> None:
    case = {"rows": "one row", "hidden": 384, "goal": 1.03}
    records = [
        {"what": what, "data": what != "Python callable", "exit": exit, "new": new, "old": old} | case
        for what, exit, new, old in (
            ("patience", 6, 1.01, 1.4), ("beem", 6, 1.02, None), ("patience", 12, 1.05, 1.3), ("beem", 12, 1.0, None),
            ("Python callable", 6, 1.2, 1.5), ("Python callable", 12, 1.1, 1.5),
        )
    ]  # fmt: skip
    head, _, *lines = core_report.criteria_table(records)
    assert head == "| criterion | h=384, one row, leave after 6 | h=384, one row, stay |"
    assert lines == [
        "| patience | 1.010 (1.400) | **1.050** (1.300) |",
        "| beem | 1.020 | 1.000 |",
        "| the worst of them | beem 1.020 | patience **1.050** |",
        "| goal | <= 1.03 | <= 1.03 |",
        "| Python callable | **1.200** (1.500) | **1.100** (1.500) |",
        "| goal | <= 1.03 | <= 1.03 |",
    ]


def test_the_core_beside_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no pfengine"):
        core.main([str(tmp_path)])


@pytest.mark.parametrize("head", models.EXIT_HEADS)
def test_random_checkpoints_are_read(tmp_path: Path, head: str) -> None:
    engine = pfengine.load(models.random_checkpoint(tmp_path, 24, head), precision="fp32", criterion="never")
    out = engine.predict([{"input_ids": row} for row in make_rows(3)])
    assert np.isfinite(out.logits).all()
    assert list(engine.exit_layers) == list(range(models.EXIT_HEADS[head][1], 13, models.EXIT_HEADS[head][1]))


@pytest.mark.slow
def test_exits(tmp_path: Path) -> None:
    output, report = run_bench(tmp_path / "bench.json", "bench/test_exits.py", PFENGINE_BENCH_ROWS="6")
    assert "layer speed-up" in output
    assert "wall-clock speed-up" in output
    results = report["results"]
    assert set(results) == {"1", "8", "32"}
    for rows in results.values():
        by_name = {row["contestant"]: row for row in rows}
        assert len(by_name) == 5
        assert by_name["pfengine, exits off"]["layer_speedup"] == 1
        assert by_name["transformers eager"]["layer_speedup"] == 1
        assert by_name["pfengine, replay"]["layer_speedup"] == by_name["pfengine, exits on"]["layer_speedup"] > 1
        assert by_name["research loop, batch 1"]["layer_speedup"] == by_name["pfengine, exits on"]["layer_speedup"]


@pytest.mark.slow
@pytest.mark.skipif(not extension.has_cpu(), reason="int8 needs the compiled kernels")
def test_full_depth_latency_and_replay(tmp_path: Path) -> None:
    output, report = run_bench(
        tmp_path / "bench.json",
        *(f"bench/test_{suite}.py" for suite in ("full_depth", "latency", "replay", "head")),
        PFENGINE_BENCH_ROWS="4",
        PFENGINE_BENCH_HIDDEN="48",
        PFENGINE_BENCH_BATCHES="2,stream",
        PFENGINE_BENCH_CACHE=str(tmp_path / "cache"),
        PFENGINE_BENCH_CONTESTANTS="transformers,ONNX,OpenVINO,pfengine",  # torch.compile takes a minute
        PFENGINE_BENCH_PICTURES=str(tmp_path / "pictures"),
        OMP_NUM_THREADS="1",  # so small a model only waits for threads
        **without("onnxruntime", tmp_path / "absent"),
    )
    skipped = report["skipped"]
    for name in ("ONNX Runtime fp32", "ONNX Runtime int8"):
        assert skipped[name] in ("onnxruntime is not installed", "onnx is not installed")
        assert f"{name}: skipped: {skipped[name]}" in output
    assert skipped["torch.compile fp32"] == "left out by PFENGINE_BENCH_CONTESTANTS"
    assert report["refused"] == {}
    timed = [name for name in NAMES if name not in skipped]
    assert {"transformers fp32", "pfengine fp32", "pfengine bf16", "pfengine int8"} <= set(timed)

    full_depth, latency, replay = (report[suite] for suite in ("full_depth", "latency", "replay"))
    for size in ("2", "stream"):
        assert [r["contestant"] for r in full_depth if r["batch_size"] == size] == timed
    assert [r["contestant"] for r in latency] == timed
    for record in full_depth + latency:
        ratio = record["speedup_over_openvino"]
        assert ratio is None if f"OpenVINO {record['precision']}" in skipped else 0 < ratio < math.inf
        assert record["rows_per_second"] > 0
    assert all(0 < r["share_of_roof"] < 1.5 for r in full_depth)
    assert all(0 < r["p50_ms"] <= r["p99_ms"] for r in latency)
    assert {"fp32", "bf16", "int8"} == set(report["gemm_gflops"])

    for head in ("authors", "authors, every second layer", "folded"):
        for size in ("2", "stream"):
            records = [r for r in replay if (r["head"], r["batch_size"]) == (head, size)]
            assert [r["layer_speedup"] for r in records] == [1, 1.5, 2, 3, 4]
            assert all(0 < r["wall_clock_over_layer_speedup"] < math.inf for r in records)
    beside = [r["contestant"] for r in replay if r["speedup_over_openvino"]]
    assert beside == ([] if "OpenVINO int8" in skipped else ["replay 3x"] * 3)
    assert [(r["batch_size"], r["head"]) for r in report["head"]] == [
        (size, head) for size in ("2", "stream") for head in models.EXIT_HEADS if head != "classifier"
    ]
    assert all(-1 < r["share_of_encoder"] < math.inf for r in report["head"])
    assert all((r["share_beyond_bare_exits"] == 0) == r["head"].startswith("bare") for r in report["head"])
    assert {"throughput-48.png", "throughput-48.svg", "replay-48-int8.png", "replay-48-int8.svg"} == {
        path.name for path in (tmp_path / "pictures").iterdir()
    }


def test_rows() -> None:
    rows = make_rows(96)
    lengths = [len(row) for row in rows]
    assert rows == make_rows(96)
    assert 4 <= min(lengths) <= max(lengths) <= 66
    assert 23 < sum(lengths) / 96 < 27
    assert sorted(i for batch in fixed_batches(rows, 7) for i in batch) == list(range(96))
    batch = padded([[1, 2, 3], [4]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("n", [1, 7, 96])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("speedup", [1.5, 2, 3, 4])
def test_replayed_layers(n: int, speedup: float, every: int) -> None:
    rows = make_rows(n)
    layers = replay_layers(rows, speedup, every)
    assert layers.sum() == every * round(n * 12 / speedup / every)
    assert layers.min() >= every
    assert layers.max() <= 12
    assert not (layers % every).any()
    if n == 96:  # who has more tokens does not stay longer
        tokens = np.array([len(row) for row in rows])
        assert (tokens * layers).sum() / tokens.sum() == pytest.approx(layers.mean(), rel=2e-3)


def test_answers_that_differ_are_not_timed() -> None:
    answers = {name: np.array([[0.0, 1.0], [1.0, 0.0]]) for name in (REFERENCE, "pfengine fp32", "pfengine int8")}
    calls = {name: partial(array.copy) for name, array in answers.items()}
    assert set(interleave(calls, disagreeing, rounds=2).seconds) == set(answers)
    answers["pfengine fp32"] += 1e-3
    answers["pfengine int8"][0, 0] = np.nan
    rounds = interleave(calls, disagreeing, rounds=2)
    assert set(rounds.seconds) == {REFERENCE}
    assert rounds.speedup(REFERENCE, REFERENCE) == 1
    assert rounds.speedup(REFERENCE, "pfengine int8") is None
    assert disagreeing({"pfengine fp32": answers["pfengine fp32"]}) == {"pfengine fp32"}


def test_what_is_interrupted_is_made_again(tmp_path: Path) -> None:
    def half(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.kept(tmp_path / "a", half)
    assert not list(tmp_path.iterdir())
    path = models.kept(tmp_path / "a", lambda directory: (directory / "whole").touch())
    assert models.kept(tmp_path / "a", half) == path
    assert [file.name for file in path.iterdir()] == ["whole"]
