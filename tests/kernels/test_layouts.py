from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pfengine.kernels.layouts import Reduction, reductions, uneven_sums

LAYOUTS = """
#blocked = #ttg.blocked<{sizePerThread = [4], threadsPerWarp = [32], warpsPerCTA = [4], order = [0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 2], threadsPerWarp = [8, 4], warpsPerCTA = [2, 2], order = [1, 0]}>
#blocked2 = #ttg.blocked<{sizePerThread = [1, 1, 2], threadsPerWarp = [2, 4, 4], warpsPerCTA = [1, 2, 2], order = [2, 1, 0]}>
#linear = #ttg.linear<{register = [[0, 1], [8, 0]], lane = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]], warp = [[0, 8], [0, 0]], block = []}>
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [4, 1], instrShape = [16, 8]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [1, 4], instrShape = [16, 8]}>
#mma2 = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 2], instrShape = [16, 32, 16]}>
#shared = #ttg.swizzled_shared<{vec = 8, perPhase = 1, maxPhase = 8, order = [1, 0]}>
#tmem = #ttng.tensor_memory_encoding<blockM = 64, blockN = 64>
#dot = #ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 2}>
"""  # noqa: E501
REDUCE = """
    %most = "tt.reduce"(%scores) <{axis = AXIS : i32}> ({
    ^bb0(%a: f32 loc(callsite(#loc1 at #loc2)), %b: f32 loc(#loc3)):
      %c = arith.COMBINES %a, %b : f32 loc(#loc4)
      tt.reduce.return %c : f32 loc(#loc5)
    }) : (tensor<OPERAND>) -> tensor<16xf32, #ttg.slice<{dim = 1, parent = #mma}>> loc(#loc6)
"""


def module(operand: str, axis: int = 0, combines: str = "addf") -> str:
    return LAYOUTS + REDUCE.replace("AXIS", str(axis)).replace("COMBINES", combines).replace("OPERAND", operand)


@pytest.mark.parametrize(
    ("operand", "axis", "in_thread", "in_warp", "across_warps"),
    [
        ("1024xf32, #blocked", 0, (1, 2, 512), (4, 8, 16, 32, 64), (128, 256)),
        ("128xf32, #blocked", 0, (1, 2), (4, 8, 16, 32, 64), ()),  # all warps hold the same
        ("64xf32, #blocked", 0, (1, 2), (4, 8, 16, 32), ()),  # and some threads, too
        ("2xf32, #blocked", 0, (1,), (), ()),
        ("1xf32, #blocked", 0, (), (), ()),
        ("16x32xf32, #blocked1", 1, (1, 16), (2, 4), (8,)),
        ("16x32xf32, #blocked1", 0, (), (1, 2, 4), (8,)),
        ("64x32xf32, #mma", 1, (1, 8, 16), (2, 4), ()),
        ("64x32xf32, #mma", 0, (8,), (1, 2, 4), (16, 32)),
        ("32x32xf32, #mma1", 1, (1,), (2, 4), (8, 16)),
        ("32x64xf32, #mma1", 1, (1, 32), (2, 4), (8, 16)),
        ("64x128xf32, #mma2", 1, (1, 8, 16, 64), (2, 4), (32,)),
        ("128x128xf32, #mma2", 0, (8, 64), (1, 2, 4), (16, 32)),
        ("16x32xf32, #linear", 1, (1, 16), (2, 4), (8,)),
        ("16x32xf32, #linear", 0, (8,), (1, 2, 4), ()),
        # a slice has one axis less than its parent
        ("16xf32, #ttg.slice<{dim = 0, parent = #blocked1}>", 0, (1,), (2, 4), (8,)),
        ("16xf32, #ttg.slice<{dim = 1, parent = #blocked1}>", 0, (), (1, 2, 4), (8,)),
        ("2x16xf32, #ttg.slice<{dim = 1, parent = #blocked2}>", 1, (1,), (2, 4), (8,)),
        ("16xf32, #ttg.slice<{dim = 1, parent = #ttg.slice<{dim = 0, parent = #blocked2}>}>", 0, (8,), (1, 2), (4,)),
        ("16xf32, #ttg.slice<{dim = 0, parent = #ttg.slice<{dim = 0, parent = #blocked2}>}>", 0, (1,), (2, 4), (8,)),
    ],
)
def test_where_numbers_lie(
    operand: str, axis: int, in_thread: tuple[int, ...], in_warp: tuple[int, ...], across_warps: tuple[int, ...]
) -> None:
    (found,) = reductions(module(operand, axis))
    assert found.order == (in_thread, in_warp, across_warps)
    assert found.warps == 2 ** len(across_warps)
    assert found.length == 2 ** sum(map(len, found.order))
    assert (found.combines, found.element, found.axis) == ("addf", "f32", axis)


def test_all_are_found_in_order() -> None:
    text = module("64x32xf32, #mma", 1, "maxnumf") + module("64x32xi32, #mma", 1).removeprefix(LAYOUTS)
    assert [str(one) for one in reductions(text)] == [
        "maxnumf of 64x32 along 1: 8 x 4 threads x 1 warps",
        "addf of 64x32 along 1: 8 x 4 threads x 1 warps",
    ]
    assert reductions(LAYOUTS) == []


@pytest.mark.parametrize(
    ("combines", "element", "exact"),
    [
        ("maxnumf", "f32", True),
        ("cmpf cmpi andi ori select select", "f32", True),  # the place of the largest
        ("addf", "f32", False),
        ("addf", "bf16", False),
        ("mulf", "f32", False),
        ("addi", "i32", True),
    ],
)
def test_what_depends_on_the_order(combines: str, element: str, exact: bool) -> None:
    assert Reduction(combines, element, (32,), 0, (), (1, 2, 4, 8, 16), ()).exact is exact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (module("64x32xf32, #dot", 1), "layout that is not known here: dot_op<"),
        (module("64x32xf32, #mma7", 1), "layout #mma7, which its module does not define"),
        (module("64x?xf32, #mma", 1), "of the 1 reductions of a module only 0 could be read"),
        (module("64x32xf32, #linear").replace("[[0, 8], [0, 0]]", "[[6, 8], [0, 0]]"), "not those of an axis of 64"),
    ],
)
def test_what_is_not_known_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reductions(text)


COMPILED = """
import json
from pfengine.kernels.report import compiled, shipped
for name in ("_add_layer_norm_kernel", "_query_mean_kernel"):
    launch = next(one for one in shipped((384,)) if one.kernel.__name__ == name)
    print(json.dumps([str(one) for one in compiled(launch, 90).reductions]))
"""


def test_compiled_kernels() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    normalised, weighed = (json.loads(line) for line in result.stdout.splitlines())
    assert normalised == ["addf of 512 along 0: 8 x 32 threads x 2 warps"] * 2
    assert weighed == ["addf of 512 along 0: 16 x 32 threads x 1 warps"]


PTX = """
	mul.f32 	%r1, %r8, %r9;
	shfl.sync.bfly.b32 	%r2, %r1, 1, 31, -1;
	SUM
"""


@pytest.mark.parametrize(
    ("instruction", "uneven"),
    [
        ("fma.rn.f32 	%r3, %r8, %r9, %r2; // one product is rounded, and the other is not", True),
        ("fma.rn.f32 	%r3, %r9, %r8, %r2;", True),
        ("add.f32 	%r3, %r1, %r2;", False),
        ("fma.rn.f32 	%r3, %r8, %r7, %r2;", False),  # another product, which no other thread has
        ("fma.rn.f32 	%r3, %r8, %r9, %r1;", False),  # of one thread
    ],
)
def test_sums_that_differ_in_two_threads(instruction: str, uneven: bool) -> None:
    assert len(uneven_sums(PTX.replace("SUM", instruction))) == uneven
