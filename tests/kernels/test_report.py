"""Kernels compiled ahead of time, in a process of its own where nothing is interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLEAN = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
EVERY_KERNEL = """
import importlib, pkgutil
from pfengine import kernels
from pfengine.kernels.report import shipped
names = set()
for module in pkgutil.iter_modules(kernels.__path__):
    found = vars(importlib.import_module(f"pfengine.kernels.{module.name}"))
    names |= {name for name in found if name.endswith("_kernel")}
launched = {launch.kernel.__name__ for launch in shipped()}
print(sorted(names - launched), len(launched))
"""


def run(*arguments: str, environment: dict[str, str] = CLEAN) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=500)


def test_every_kernel_is_in_the_report() -> None:
    result = run("-c", EVERY_KERNEL)
    assert result.stdout.split(maxsplit=1)[0] == "[]", result.stdout + result.stderr
    assert int(result.stdout.split()[1]) >= 10


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "products"), [("layer_norm", "none"), ("int8_linear", "wgmma.s8")])
def test_report(tmp_path: Path, kernel: str, products: str) -> None:
    table = tmp_path / "report.json"
    result = run("-m", "pfengine.kernels.report", "--only", kernel, "--arch", "90", "--json", str(table))
    assert result.returncode == 0, result.stderr
    assert "0 faults" in result.stdout
    found = json.loads(table.read_text())
    assert {one["arch"] for one in found} == {90}
    assert {one["instruction"] for one in found} == {one["expected"] for one in found} == {products}
    assert all(one["registers"] > 8 and one["spill_bytes"] == 0 for one in found)


def test_interpreted_kernels_are_refused() -> None:
    result = run("-m", "pfengine.kernels.report", environment=CLEAN | {"TRITON_INTERPRET": "1"})
    assert result.returncode == 2
    assert "unset it" in result.stderr


def test_faults() -> None:
    code = """
from pfengine.kernels.report import Compiled
good = Compiled("linear", "bf16", 90, 168, 0, 131072, "wgmma", "wgmma")
assert good.faults() == []
for wrong, text in (
    ({"spill_bytes": 8}, "spills 8 bytes"),
    ({"shared_bytes": 232449}, "wants 232449 bytes of shared memory, there are 232448"),
    ({"instruction": "mma"}, "has mma where wgmma is expected"),
    ({"expected": "wgmma+tma"}, "has wgmma where wgmma+tma is expected"),
    ({"expected": "wgmma.s8"}, "has wgmma where wgmma.s8 is expected"),
):
    (fault,) = good._replace(**wrong).faults()
    assert text in fault, fault
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
