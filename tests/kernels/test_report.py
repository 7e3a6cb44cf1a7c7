"""Kernels compiled ahead of time, in processes where nothing is interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


RUN_EACH = """
import contextlib, io, json, sys, traceback
for line in sys.stdin:
    printed, fault = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(json.loads(line), {})
        except Exception:
            fault = traceback.format_exc()
    print(json.dumps([printed.getvalue(), fault]), flush=True)
"""


@pytest.fixture(scope="module")
def execute() -> Iterator[Callable[[str], str]]:
    """execute(code) -> what it prints. All in one process: torch and Triton take seconds to load."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN_EACH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(code: str) -> str:
            print(json.dumps(code), file=process.stdin, flush=True)
            printed, fault = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            assert not fault, fault
            return printed

        yield ask


def test_every_kernel_is_in_the_report(execute: Callable[[str], str]) -> None:
    missing, launched = execute(EVERY_KERNEL).rsplit(maxsplit=1)
    assert missing == "[]"
    assert int(launched) >= 10


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
    assert all(one["registers"] > 8 and one["spill_bytes"] == 0 and one["programs"] > 1 for one in found)
    if kernel == "layer_norm":
        assert any("addf of 1024 along 0" in text for one in found for text in one["reductions"])


@pytest.mark.slow
def test_the_quick_part_has_every_kernel(execute: Callable[[str], str]) -> None:
    code = """
import torch
from pfengine.kernels import report
from pfengine.kernels.launch import FLOATS
def of(what):
    found = [launch for models in what for launch in report.shipped(*models)]
    return {launch.kernel.__name__ for launch in found}, {value.dtype for launch in found
        for value in launch.arguments.values() if hasattr(value, "dtype")}
every, dtypes = of([()])
kernels, found = of([models for arch in report.QUICK.values() for models in arch])
assert kernels == every and dtypes - found == {torch.float16} < {*FLOATS}
compiles, report.compiled = report.compiled, lambda launch, arch: (launch.kernel.__name__, arch)
quick, whole, some = report.run((80, 90), quick=True), report.run((80, 90)), report.run((90,), "decide_tokens")
report.compiled = compiles
assert {arch for _, arch in quick} == {80, 90} and ("_tma_linear_kernel", 80) not in whole
assert len(quick) < 0.5 * len(whole), (len(quick), len(whole))
assert {name for name, _ in some} == {"_decide_tokens_kernel"}
"""
    execute(code)


def test_interpreted_kernels_are_refused() -> None:
    result = run("-m", "pfengine.kernels.report", environment=CLEAN | {"TRITON_INTERPRET": "1"})
    assert result.returncode == 2
    assert "unset it" in result.stderr


def test_faults(execute: Callable[[str], str]) -> None:
    code = """
from pfengine.kernels.layouts import Reduction
from pfengine.kernels.report import Compiled
largest = Reduction("maxnumf", "f32", (64, 32), 1, (1, 8, 16), (2, 4), ())
good = Compiled("linear", "bf16", 90, 168, 0, 131072, "wgmma", "wgmma", 2, 2, "bf16", (largest,), True, ())
assert good.faults() == [] and good.warps == 1
assert good._replace(reductions=()).faults() == [] and good._replace(reductions=()).warps == 0
split = largest._replace(in_thread=(1,), across_warps=(8, 16))
assert good._replace(reductions=(split,), one_warp=False).faults() == []
for wrong, text in (
    ({"spill_bytes": 8}, "spills 8 bytes"),
    ({"shared_bytes": 232449}, "wants 232449 bytes of shared memory, there are 232448"),
    ({"instruction": "mma"}, "has mma where wgmma is expected"),
    ({"uneven": ("fma.rn.f32 %r3, %r8, %r9, %r2;",)}, "without rounding its own (fma.rn.f32 %r3"),
    ({"expected": "wgmma+tma"}, "has wgmma where wgmma+tma is expected"),
    ({"expected": "wgmma.s8"}, "has wgmma where wgmma.s8 is expected"),
    ({"programs": 1}, "fits 1 times on a multiprocessor, expected 2; it has 168 registers"),
    ({"reductions": (largest, split)}, "(maxnumf of 64x32 along 1: 2 x 4 threads x 4 warps)"),
):
    (fault,) = good._replace(**wrong).faults()
    assert text in fault, fault
"""
    execute(code)


def test_orders_of_sums(execute: Callable[[str], str]) -> None:
    code = """
from pfengine.kernels.layouts import Reduction
from pfengine.kernels.report import Compiled, order_faults
total = Reduction("addf", "f32", (64, 32), 1, (1, 8, 16), (2, 4), ())
other = total._replace(in_thread=(16,), in_warp=(1, 2, 4, 8))
small = Compiled("attention", "ROWS=1", 80, 99, 0, 0, "mma", "mma", 1, 1, "bf16", (total,), False, ())
large = small._replace(config="ROWS=4")
assert order_faults([]) == order_faults([small, large]) == []
for right in (
    {"reductions": (total._replace(shape=(16, 32)),)},  # other rows
    {"reductions": (other._replace(shape=(64, 64), in_thread=(16, 32)),)},  # another sum
    {"reductions": (total, other._replace(combines="maxnumf"))},  # the largest number is the same in any order
    {"reductions": (total, other._replace(shape=(64, 8, 32), axis=2))},  # as many numbers, of something else
    {"reductions": ()},
    {"reductions": (other,), "kind": "fp16"},
):
    assert order_faults([small, large._replace(**right)]) == [], right
for wrong in (other, total._replace(in_thread=(1,), across_warps=(8, 16)), total._replace(in_warp=(4, 2))):
    (fault,) = order_faults([small, large, large._replace(reductions=(wrong,))])
    assert "attention adds up 32 numbers (addf) in 2 orders" in fault, fault
    assert "strides (1, 8, 16) in a thread, (2, 4) in a warp, () across warps in (ROWS=1) on sm_80" in fault, fault
    assert "in (ROWS=4)" in fault, fault
(fault,) = order_faults([small._replace(reductions=(total, other)), large])  # of two sums one is as in the other
assert "in 2 orders" in fault
"""
    execute(code)


def test_variants_for_the_same_row_are_of_one_kind(execute: Callable[[str], str]) -> None:
    code = """
from pfengine.kernels.report import compiled, shipped
launches = [one for one in shipped((384,)) if one.kernel.__name__ == "_attention_kernel"]
launches = [one for one in launches if one.constants["BLOCK_D"] == 32 and one.constants["PRECISION"] == "ieee"]
plain = [one for one in launches if one.arguments["bias"] is None and one.arguments["of_keys"] is None]
few, many = (next(one for one in plain if one.constants["ROWS"] == rows) for rows in (1, 4))
biased = next(one for one in launches if one.arguments["bias"] is not None)
tables = next(one for one in launches if one.arguments["of_keys"] is not None)
few, many, biased, tables = (compiled(one, 90) for one in (few, many, biased, tables))
assert few.kind == many.kind
assert len({few.kind, biased.kind, tables.kind}) == 3
assert few.one_warp and biased.one_warp and not tables.one_warp
assert few.warps == 1 and tables.warps > 1
"""
    execute(code)


def test_threads_of_a_warp_agree_on_sums(execute: Callable[[str], str]) -> None:
    """Two labels: a product for each of two threads, which add the other's. Both store the sum to one address."""
    code = """
from pfengine.kernels.layouts import uneven_sums
from pfengine.kernels.report import build, shipped
launches = list(shipped((768,)))
exit = next(
    one for one in launches
    if one.kernel.__name__ == "_past_future_kernel" and one.constants["FORM"] == "authors" and one.constants["ONCE"]
)
assert exit.constants["BLOCK_G"] == 2
for launch in (exit, next(one for one in launches if one.kernel.__name__ == "_imitation_weigh_kernel")):
    for arch in (80, 90):
        print(len(uneven_sums(build(launch, arch).asm["ptx"])))
"""
    assert execute(code).split() == ["0"] * 4


def test_words_for_the_host_are_written_through_and_steps_rounded(execute: Callable[[str], str]) -> None:
    code = """
import re
from pfengine.kernels.report import build, shipped
launches = list(shipped((768,)))
for kernel in ("survivors", "remaining", "quantise_rows"):
    launch = next(one for one in launches if one.kernel.__name__ == f"_{kernel}_kernel")
    ptx = build(launch, 90).asm["ptx"]
    print(*(len(re.findall(what, ptx)) for what in (r"st\\.global\\.wt\\.b64", r"div\\.rn\\.f32", r"div\\.full")))
"""
    assert execute(code).split("\n")[:3] == ["3 0 0", "3 0 0", "0 2 0"]
