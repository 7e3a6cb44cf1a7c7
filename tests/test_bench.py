"""The benchmark suite runs, and its contestants give the same answers (it refuses to time them otherwise)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_bench_runs(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    pytest_program = Path(sys.executable).parent / "pytest"
    result = subprocess.run(
        [pytest_program, "bench", "--benchmark-only", "-q"],
        cwd=ROOT,
        env=os.environ | {"PFENGINE_BENCH_ROWS": "6", "PFENGINE_BENCH_ROUNDS": "1", "PFENGINE_BENCH_JSON": str(report)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "layer speed-up" in result.stdout
    assert "wall-clock speed-up" in result.stdout
    results = json.loads(report.read_text())["results"]
    assert set(results) == {"1", "8", "32"}
    for rows in results.values():
        by_name = {row["contestant"]: row for row in rows}
        assert len(by_name) == 5
        assert by_name["pfengine, exits off"]["layer_speedup"] == 1
        assert by_name["transformers eager"]["layer_speedup"] == 1
        assert by_name["pfengine, replay"]["layer_speedup"] == by_name["pfengine, exits on"]["layer_speedup"] > 1
        assert by_name["research loop, batch 1"]["layer_speedup"] == by_name["pfengine, exits on"]["layer_speedup"]
