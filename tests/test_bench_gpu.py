"""The GPU suite without a GPU: its clocks, its report, and the whole way of it, dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # at its end: pfengine stays the one that is installed

from bench.gpu import report, timing, whole, work  # noqa: E402
from bench.gpu import results as goals  # noqa: E402
from bench.gpu.parts import copies  # noqa: E402
from bench.gpu.results import TABLES, Results, kept  # noqa: E402
from bench.gpu.test_gpu import plan  # noqa: E402
from bench.gpu.timing import spans  # noqa: E402
from bench.gpu.work import AUTOTUNED, COMPILED, EAGER, FLASH, INT8, OVERHEAD, RAGGED, VARLEN  # noqa: E402
from bench.tables import short  # noqa: E402
from pfengine.ops.cuda_flight import CudaFlight  # noqa: E402


def test_the_committed_report_is_what_is_counted_now() -> None:
    """Otherwise: PFENGINE_GPU_DOCS=1 pytest bench/gpu."""
    assert (ROOT / "docs" / "results" / "gpu.md").read_text() == report.markdown(kept())


CELL = {"hidden": 768, "lengths": "SST-2", "batch": 128}
SPANS = ("profiled", "before_device", "busy", "long_gap", "short_gap", "after_device", "host_waits")
OLD, NEW = "2026-01-01 00:00:00", "2026-01-02 00:00:00"


def measured() -> dict[str, Any]:
    """As two runs leave it, with numbers that no run gave: the older one measured the time of kernels."""
    timed = {"seconds": 2e-3, "rows_per_second": 5.0, "device_seconds": None} | dict.fromkeys(
        ("error_share_of_range", "transformers_error_share_of_range"), 0.01
    )
    peer = timed | {"pfengine_is_faster_on_device": None, "rows": 128, "tokens": 10, "padded_tokens": 25} | CELL
    run = {"commit": "abc", "machine": {"gpu": "a GPU"}, "sizes": {}}
    rates = {"gemm_size": 8192, "gemm_flops_per_second": 5e14, "copy_bytes_per_second": 2e12}
    found: dict[str, Any] = {
        "dry": False,
        "runs": {
            OLD: run | {"ceilings": rates | {"copy_bytes_per_second": 1e12}},
            NEW: run | {"ceilings": rates},
        },
        "full_depth": [
            peer | {"contestant": "pfengine", "pfengine_is_faster": 1.0, "beside": EAGER},
            peer | {"contestant": EAGER, "pfengine_is_faster": 3.5, "beside": EAGER},
            peer | {"contestant": "pfengine", "pfengine_is_faster": 1.0, "beside": AUTOTUNED},
            peer | {"contestant": AUTOTUNED, "pfengine_is_faster": 1.2, "beside": AUTOTUNED},
            peer | {"contestant": OVERHEAD, "pfengine_is_faster": 1.1, "beside": OVERHEAD, "run": OLD},
            peer | {"contestant": INT8, "pfengine_is_faster": 0.7, "pfengine_is_faster_on_device": 0.6, "beside": INT8},
        ],
        "replay": [
            CELL
            | {"contestant": contestant, "rows_per_second": 9.0, "layer_speedup": speedup, "seconds": 1e-3}
            | {"wall_clock_speedup": speedup, "wall_clock_over_layer_speedup": 1.0, "device_seconds": 1e-3}
            | {"device_over_layer_speedup": 1.0}
            for contestant, speedup in (("exits off", 1.0), ("2x", 2.0))
        ],
        "kernels": [
            {"hidden": 768, "rows": 128, "tokens": 3088, "label": "embed", "launches": 1, "seconds": 1e-5}
            | {"flops": 1, "bytes": 1, "run": OLD}
        ],
        "timeline": [
            CELL
            | {"contestant": "2x", "seconds": 5e-3, "host": [("a", 3.0), ("b", 1.0)]}
            | dict.fromkeys((f"{span}_seconds" for span in SPANS), 2e-4)
            | {"long_gaps": 2, "launches": 2, "graph_replays": 1, "kernels": 4, "run": NEW}
        ],
        "single": [
            {"what": "gemm share", "hidden": 768, "tokens_of_a_row": 128}
            | {f"{clock}_flops_per_second": 4e14 for clock in ("wall", "device")}
            | {f"{clock}_seconds": 1e-3 for clock in ("wall", "device")},
            {"what": "latency", "hidden": 768, "tokens_of_a_row": 32, "wall_seconds": 3e-4, "device_seconds": 2e-4},
            {"what": "exit head", "base": "no exits", "wall_share_of_a_layer": 0.1, "device_share_of_a_layer": 0.04}
            | CELL
            | {"lengths": "fixed"},
            {"what": "ragged attention", "hidden": 768, "contestant": "pfengine", "seconds": 1e-4}
            | {"pfengine_is_faster": 1.0},
            {"what": "ragged attention", "hidden": 768, "contestant": "torch varlen_attn", "seconds": 2e-4}
            | {"pfengine_is_faster": 2.0},
        ],
        "not_measured": {
            "something": "RuntimeError: a | b",
            "hidden 768, 128 tokens, batch 1: replay": "out of time",
            "hidden 768, 128 tokens, batch 8: replay": "out of time",
        },
    }
    for table in TABLES:
        found[table] = [{"run": NEW, "item": "of a test"} | record for record in found[table]]
    return found


def test_goals() -> None:
    said = [goals.reached(goal, measured())[0] for goal in goals.GOALS]
    late = ["not measured"] * 6
    assert said == ["0.80", "3.50", f"**1.20** ({AUTOTUNED} alone)", "0.300", *late, "4.0%", f"2.00 ({VARLEN} alone)"]
    assert {goals.reached(goal, measured())[1] for goal in goals.GOALS} == {NEW, ""}
    assert {goals.reached(goal, None) for goal in goals.GOALS} == {("not measured", "")}
    empty = measured() | {table: [] for table in TABLES}
    assert {goals.reached(goal, empty) for goal in goals.GOALS} == {("not measured", "")}


def test_the_report_of_a_measurement() -> None:
    text = report.markdown(measured())
    assert f"| B | {NEW} | abc | a GPU | None, None, None, None | 500 | 2.00 |" in text
    assert "- something: RuntimeError: a | b." in text
    assert "- replay at 2 sizes: out of time." in text
    assert "| hidden 768, SST-2 lengths | 128 | 9.00 |  | 2.00 (1.00, 1.00) |  |  | B |" in text
    assert "| 128 | 5.00 | 2.00 |  | 3.50 | 1.10 | 1.20 | 0.70 (0.60) | 1.0%, 1.0% | 150% | B, A, B, B |" in text
    assert "| 128 | 2x | 5.00 | 0.20 | 0.20 | 0.20 | 0.20 (2) | 0.20 | 0.20 | 0.20 | 2 | 1 | 4 | B |" in text
    assert "Python's time at batch 128 by cProfile, as shares of the functions listed: `a` 75%, `b` 25%." in text
    (embed,) = [line for line in text.splitlines() if line.startswith("| embed")]
    assert "| 9.67, 10.0 (97%) |" in embed  # 9.7 MB at 1 TB/s, the rate of the run that measured it
    assert "no GPU has run it" not in text
    assert "dry run" in report.markdown(measured() | {"dry": True})
    assert "no GPU has run it" in report.markdown(None)


def test_short() -> None:
    assert [short(value) for value in (0, 0.001, 0.5, 12.34, 1234.5)] == ["0", "<0.01", "0.50", "12.3", "1,234"]


def test_the_plan_leaves_nothing_out_and_has_the_goals_first() -> None:
    items = list(plan())
    names = [item.what for item in items]
    assert len(names) == len(set(names))
    for hidden in (768, 384):
        for tokens in ("SST-2 lengths", "128 tokens"):
            for batch in (1, 8, 32, 128, 512):
                cell = f"hidden {hidden}, {tokens}, batch {batch}: "
                assert {cell + part for part in ("replay", EAGER, OVERHEAD, RAGGED)} <= set(names)
    parts = [item.part for item in items]
    assert parts == sorted(parts, key=("", *work.PARTS).index)
    assert names[0] == "ceilings"
    assert {f"hidden 768, {tokens}, batch 128: {INT8}" for tokens in ("SST-2 lengths", "128 tokens")} <= set(names)
    assert {name for name, part in zip(names, parts, strict=True) if AUTOTUNED in name and part != "peers"} == set()


def test_parts_are_asked_for_by_name() -> None:
    assert work.asked_for(None) == work.asked_for("") == set(work.PARTS) - {"soak"}
    assert work.asked_for("soak") == {"soak"}
    assert work.asked_for("tests,goals") == {"tests", "goals"}
    with pytest.raises(ValueError, match="gaols, which is no part; expected some of build, tests, goals"):
        work.asked_for("goals,gaols")


def fails(results: Results) -> None:
    results.add("single", {"what": "half of it"})
    raise ValueError("two\nlines")


def test_results_are_kept_as_they_come(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.expect({"good": True, "bad": True, "half": True, "never reached": True, "left out": False})
    with results.measuring("good"):
        results.add("single", {"what": "latency"})
        assert json.loads((tmp_path / "gpu.json").read_text())["not_measured"]["good"] == "begun and not ended"
    with pytest.raises(ValueError, match="two"), results.measuring("bad"):
        fails(results)
    with results.measuring("half"):
        results.miss("half", "a peer failed")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["not_measured"] == {
        "never reached": "out of time", "left out": "not asked for", "bad": "ValueError: two", "half": "a peer failed",
    }  # fmt: skip
    assert found["single"] == [{"run": results.run, "item": "good", "what": "latency"}]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_run_says_what_was_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFENGINE_GPU_COMMIT", "abc")
    monkeypatch.setenv("PFENGINE_DEPENDENT_LAUNCHES", "1")
    monkeypatch.setenv("PFENGINE_WHOLE_FLIGHT", "")
    (run,) = Results(tmp_path).data["runs"].values()
    assert run["commit"] == "abc, PFENGINE_DEPENDENT_LAUNCHES=1"


def test_a_run_keeps_the_figures_of_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All records of an item are of one run: those of an item that fails stay, those of one that ends are replaced."""
    before = measured() | {table: [] for table in TABLES}
    before["single"] = [
        {"run": run, "item": item, "what": item}
        for run, item in ((OLD, "replaced"), (OLD, "replaced"), (NEW, "fails"), (NEW, "not asked for"))
    ]
    before["not_measured"] = {"replaced: a peer": "RuntimeError: no", "gone from the plan": "out of time"}
    monkeypatch.setattr(goals, "RUN", "2026-01-03 00:00:00")
    results = Results(tmp_path, before)
    results.expect({"replaced": True, "fails": True, "not asked for": False, "late": False})
    assert results.data["not_measured"] == {"replaced: a peer": "RuntimeError: no", "late": "not asked for"}
    with results.measuring("replaced"):
        results.add("single", {"what": "new"})
    with pytest.raises(ValueError, match="two"), results.measuring("fails"):
        fails(results)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(r["run"], r["what"]) for r in found["single"]] == [
        (NEW, "fails"), (NEW, "not asked for"), (results.run, "new"),
    ]  # fmt: skip
    assert found["not_measured"] == {"late": "not asked for", "fails": "ValueError: two"}
    assert list(found["runs"]) == [NEW, results.run]


def test_what_logits_may_be_off_by_does_not_follow_from_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose two logits lie close, and which transformers happens to get right, is held to the model's range."""
    monkeypatch.setattr(whole, "SIZES", work.REAL)
    expected = object.__new__(whole.Expected)
    expected.wanted, expected.transformers = np.array([[0.10, 0.15]]), 1e-5
    expected.yardstick = whole.Yardstick(span=0.25, error=0.0035)
    found = expected.check("a peer", expected.wanted + 0.0032)
    assert found["error_share_of_range"] == pytest.approx(0.0128)
    assert found["transformers_error_share_of_range"] == pytest.approx(4e-5)
    with pytest.raises(AssertionError, match=r"a peer differ from transformers fp32 by 0\.0071, more than 0\.007;"):
        expected.check("a peer", expected.wanted - 0.0071)
    expected.transformers = 0.01  # twice of it is more than 5% of the range
    expected.check("a peer", expected.wanted + 0.012)
    with pytest.raises(AssertionError, match=r"more than 0\.013"):
        expected.check("a peer", expected.wanted + 0.013)
    expected.check(INT8, expected.wanted + 0.037)  # 15% of the range
    with pytest.raises(
        AssertionError, match=r"pfengine int8 differ from transformers fp32 by 0\.038, more than 0\.037"
    ):
        expected.check(INT8, expected.wanted + 0.038)
    with pytest.raises(AssertionError, match="by nan"):
        expected.check("a peer", expected.wanted * np.nan)


class FakeGpu:
    """torch.cuda as far as the clocks use it: events read a clock that every call advances by 1 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, gpu = 0.0, self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Any) -> float:
                return end.at - self.at

        class CUDAGraph:
            def replay(self) -> None:
                for call in self.calls:
                    call()

        class graph:
            def __init__(self, made: Any) -> None:
                self.made = made

            def __enter__(self) -> None:
                self.before = gpu.now

            def __exit__(self, *error: object) -> None:
                captured = round(gpu.now - self.before)
                gpu.now = self.before
                self.made.calls = [gpu.work] * captured

        for key, value in {
            "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph, "synchronize": lambda device=None: None,
            "_sleep": lambda cycles: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, key, value)

    def work(self) -> None:
        self.now += 1.0


def test_clocks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = FakeGpu(monkeypatch), torch.device("cuda:0")
    assert timing.graphed([gpu.work] * 4, device)() == pytest.approx(1e-3)
    assert timing.queued(gpu.work, device)() == pytest.approx(1e-3)
    assert timing.wall(gpu.work, device)() > 0
    rounds = timing.interleaved({"a": lambda: 1.0, "b": lambda: 3.0}, rounds=2)
    assert rounds.seconds == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert rounds.speedup("a", "b") == 3


def test_spans_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, flight = FakeGpu(monkeypatch), cast(Any, object.__new__(CudaFlight))
    monkeypatch.setattr(CudaFlight, "_run", lambda self, times: [gpu.work() for _ in range(times)])
    with spans(torch.device("cuda:0")) as found:
        assert len(flight._run(2)) == 2
        gpu.work()
        flight._run(times=1)
    assert [span() for span in found] == [pytest.approx(2e-3), pytest.approx(1e-3)]
    flight._run(1)
    assert len(found) == 2


def test_copies_are_more_than_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    device, chip = torch.device("cuda:0"), type("Chip", (), {"L2_cache_size": 1 << 20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    large, small = torch.rand(1 << 17), torch.rand(3)  # half of a cache
    found = copies({"x": large, "y": small, "n": 3, "none": None}, device)
    assert len(found) == 6
    assert found[0]["x"] is large
    assert len({one["x"].data_ptr() for one in found}) == 6
    assert all(torch.equal(one["x"], large) and one["y"] is small and one["n"] == 3 for one in found)
    assert len(copies({"y": small}, device)) == 1
    assert len(copies({"x": large}, torch.device("cpu"))) == 1


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PFENGINE_GPU", "TRITON"))}
    return subprocess.run(
        command, cwd=ROOT, env=clean | {"PYTHON": sys.executable} | environment, capture_output=True, text=True
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(tmp_path: Path) -> None:
    result = run("bench/gpu.sh", OUT=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("torch sees no GPU on this machine")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="goes with what else is interpreted")
def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """Kernels are interpreted and the clock shows nothing; all is called as on a GPU but for CUDA's own."""
    parts = ",".join((*work.OF_THE_SCRIPT, *work.PARTS))
    how = {"PFENGINE_GPU_DRY": "1", "PFENGINE_GPU_DOCS": "1", "PFENGINE_GPU_PARTS": parts}
    result = run("bench/gpu.sh", OUT=str(tmp_path), PFENGINE_GPU_DEADLINE="1700", **how)
    log = (tmp_path / "measure.log").read_text()
    assert result.returncode == 0, result.stdout + result.stderr + log
    found = json.loads((tmp_path / "dry.json").read_text())
    no_cpu_has = {f"ragged attention: {name}" for name in (VARLEN, FLASH)}
    assert set(found["not_measured"]) == no_cpu_has
    assert "_flash_attention_forward" in found["not_measured"]["ragged attention: torch varlen_attn"]
    assert {one["contestant"] for one in found["replay"]} == {
        "exits off", "1.5x", "2x", "1.5x, one graph", "2x, one graph",
    }  # fmt: skip
    assert [one["rows"] > 0 for one in found["single"] if one["what"] == "soak"] == [True]
    assert {one["contestant"] for one in found["full_depth"]} >= {"pfengine", EAGER, *COMPILED}
    labels = {one["label"].split(",")[0].split()[0] for one in found["kernels"]}
    assert labels >= {"embed", "linear", "attention", "add_layer_norm", "past_future", "remaining"}
    assert {one["batch"] for one in found["timeline"]} == {1, 2, 3}
    assert not list(tmp_path.glob("gpu.*"))
    assert "times mean nothing" in (tmp_path / "dry.md").read_text()


@pytest.mark.slow
def test_what_is_not_reached_is_said(tmp_path: Path) -> None:
    environment = {"PFENGINE_GPU_DRY": "1", "PFENGINE_GPU_DEADLINE": "0.01", "PFENGINE_GPU_OUT": str(tmp_path)}
    environment["PFENGINE_GPU_PARTS"] = "timeline"
    pytest_ = Path(sys.executable).parent / "pytest"
    result = run(pytest_, "bench/gpu/test_gpu.py::test_measure", "-q", TRITON_INTERPRET="1", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "dry.json").read_text())
    assert found["not_measured"]["ceilings"] == "out of time"
    late = [what for what, why in found["not_measured"].items() if why == "out of time"]
    assert len(late) == result.stdout.splitlines()[0].count("s")
    assert {why for what, why in found["not_measured"].items() if what not in late} == {"not asked for"}
    assert {what.rpartition(": ")[2] for what in late} == {"ceilings", "timeline"}
    assert work.REAL.precision == "bf16"
