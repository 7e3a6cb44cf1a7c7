"""The GPU suite without a GPU: its clocks, its report, and the whole way of it, dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # at its end: pfengine stays the one that is installed

from bench.gpu import report, timing, work  # noqa: E402
from bench.gpu import results as goals  # noqa: E402
from bench.gpu.parts import copies  # noqa: E402
from bench.gpu.report import short  # noqa: E402
from bench.gpu.results import TABLES, Results, kept  # noqa: E402
from bench.gpu.test_gpu import plan  # noqa: E402
from bench.gpu.timing import spans  # noqa: E402
from bench.gpu.work import AUTOTUNED, COMPILED, EAGER  # noqa: E402
from pfengine.ops.cuda_flight import CudaFlight  # noqa: E402


def test_the_committed_report_is_what_is_counted_now() -> None:
    """Otherwise: PFENGINE_GPU_DOCS=1 pytest bench/gpu."""
    assert (ROOT / "docs" / "results" / "gpu.md").read_text() == report.markdown(kept())


CELL = {"hidden": 768, "lengths": "SST-2", "batch": 128}


def measured() -> dict[str, Any]:
    """As a run leaves it, with numbers that no run gave."""
    timed = {"seconds": 2e-3, "rows_per_second": 5.0, "device_seconds": None, "error_share_of_range": 0.0}
    peer = timed | {"pfengine_is_faster_on_device": None, "rows": 128, "tokens": 10, "padded_tokens": 25} | CELL
    return {
        "dry": False,
        "machine": {"gpu": "a GPU"},
        "ceilings": {"gemm_size": 8192, "gemm_flops_per_second": 5e14, "copy_bytes_per_second": 2e12},
        "full_depth": [
            peer | {"contestant": "pfengine", "pfengine_is_faster": 1.0, "beside": ["pfengine", EAGER]},
            peer | {"contestant": EAGER, "pfengine_is_faster": 3.5, "beside": ["pfengine", EAGER]},
            peer | {"contestant": AUTOTUNED, "pfengine_is_faster": 1.2, "beside": ["pfengine", AUTOTUNED]},
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
            | {"flops": 1, "bytes": 1}
        ],
        "single": [
            {"what": "gemm share", "hidden": 768, "tokens_of_a_row": 128}
            | {f"{clock}_flops_per_second": 4e14 for clock in ("wall", "device")}
            | {f"{clock}_seconds": 1e-3 for clock in ("wall", "device")},
            {"what": "latency", "hidden": 768, "tokens_of_a_row": 32, "wall_seconds": 3e-4, "device_seconds": 2e-4},
            {"what": "exit head", "base": "no exits", "wall_share_of_a_layer": 0.1, "device_share_of_a_layer": 0.04}
            | CELL,
            {"what": "ragged attention", "hidden": 768, "contestant": "pfengine", "seconds": 1e-4}
            | {"pfengine_is_faster": 1.0},
            {"what": "ragged attention", "hidden": 768, "contestant": "torch varlen_attn", "seconds": 2e-4}
            | {"pfengine_is_faster": 2.0},
        ],
        "not_measured": {"something": "RuntimeError: a | b"},
    }


def test_goals() -> None:
    said = [goals.reached(goal, measured()) for goal in goals.GOALS]
    late = ["not measured"] * 6
    assert said == ["0.80", "3.50", f"**1.20** ({AUTOTUNED.split()[-1]} alone)", "0.300", *late, "4.0%", "2.00"]
    assert {goals.reached(goal, None) for goal in goals.GOALS} == {"not measured"}
    empty = measured() | {table: [] for table in TABLES} | {"ceilings": None}
    assert {goals.reached(goal, empty) for goal in goals.GOALS} == {"not measured"}


def test_the_report_of_a_measurement() -> None:
    text = report.markdown(measured())
    assert "500 TFLOP/s" in text
    assert "| something | RuntimeError: a / b |" in text
    assert "| hidden 768, SST-2 lengths | 128 | 9.00 |  | 2.00 (1.00, 1.00) |  |  |" in text
    (embed,) = [line for line in text.splitlines() if line.startswith("| embed") and "not measured" not in line]
    assert embed.endswith("| 10.0 | 48% |")  # 9.7 MB at 2 TB/s
    assert "no GPU has run it" not in text
    assert "dry run" in report.markdown(measured() | {"dry": True})


def test_short() -> None:
    assert [short(value) for value in (0, 0.001, 0.5, 12.34, 1234.5)] == ["0", "<0.01", "0.50", "12.3", "1,234"]


def test_the_plan_leaves_nothing_out_and_has_the_goals_first() -> None:
    names = [item.what for item in plan()]
    assert len(names) == len(set(names))
    for hidden in (768, 384):
        for tokens in ("SST-2 lengths", "128 tokens"):
            for batch in (1, 8, 32, 128, 512):
                cell = f"hidden {hidden}, {tokens}, batch {batch}: "
                assert sum(each.startswith(cell) for each in names) == 2 + len(COMPILED)
    assert names[0] == "ceilings"
    last_of_goals = max(names.index(f"hidden 768, SST-2 lengths, batch 128: {peer}") for peer in COMPILED)
    assert last_of_goals <= 12


def test_results_are_kept_as_they_come(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.miss("never reached", "out of time")
    with results.measuring("good"):
        results.add("single", {"what": "latency"})
        assert json.loads((tmp_path / "gpu.json").read_text())["not_measured"]["good"] == "begun and not ended"
    with pytest.raises(ValueError, match="two"), results.measuring("bad"):
        raise ValueError("two\nlines")
    with results.measuring("half"):
        results.miss("half", "a peer failed")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["not_measured"] == {
        "never reached": "out of time", "bad": "ValueError: two", "half": "a peer failed",
    }  # fmt: skip
    assert found["single"] == [{"what": "latency"}]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


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
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="goes with what else is interpreted")
def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """Kernels are interpreted and the clock shows nothing; all is called as on a GPU but for CUDA's own."""
    result = run("bench/gpu.sh", OUT=str(tmp_path), PFENGINE_GPU_DRY="1", PFENGINE_GPU_DOCS="1")
    log = (tmp_path / "measure.log").read_text()
    assert result.returncode == 0, result.stdout + result.stderr + log
    found = json.loads((tmp_path / "dry.json").read_text())
    assert set(found["not_measured"]) == {"ragged attention: torch varlen_attn"}  # which no CPU has
    assert "_flash_attention_forward" in found["not_measured"]["ragged attention: torch varlen_attn"]
    assert {one["contestant"] for one in found["replay"]} == {"exits off", "1.5x", "2x"}
    assert {one["contestant"] for one in found["full_depth"]} >= {"pfengine", EAGER, *COMPILED}
    labels = {one["label"].split(",")[0].split()[0] for one in found["kernels"]}
    assert labels >= {"embed", "linear", "attention", "add_layer_norm", "imitation", "gate_merge"}
    assert not list(tmp_path.glob("gpu.*"))
    assert "times mean nothing" in (tmp_path / "dry.md").read_text()


@pytest.mark.slow
def test_what_is_not_reached_is_said(tmp_path: Path) -> None:
    environment = {"PFENGINE_GPU_DRY": "1", "PFENGINE_GPU_DEADLINE": "0.01", "PFENGINE_GPU_OUT": str(tmp_path)}
    pytest_ = Path(sys.executable).parent / "pytest"
    result = run(pytest_, "bench/gpu/test_gpu.py::test_measure", "-q", TRITON_INTERPRET="1", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "dry.json").read_text())
    assert found["not_measured"]["ceilings"] == "out of time"
    assert set(found["not_measured"].values()) == {"out of time"}
    assert len(found["not_measured"]) == result.stdout.splitlines()[0].count("s")
    assert work.REAL.precision == "bf16"
