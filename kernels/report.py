"""`python -m pfengine.kernels.report`: compiles every kernel ahead of time as it is shipped. No GPU is needed.

Prints registers, spills, shared memory, how many programs fit on a multiprocessor, over how many warps sums and maxima
of floats are split, and the matrix instruction. It fails
- on a spill, and on more shared memory than the chip has;
- where an expected matrix instruction is missing;
- where fewer programs than expected fit on a multiprocessor: with a single one nothing runs while it waits;
- where attention reduces scores over several warps, which costs a barrier every block of keys;
- where two threads that add up each other's products would hold different sums;
- where variants that may serve the same row add up in different orders, so that its bits could depend on the batch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import FLOATS, Launch
from .layouts import Order, Reduction, reductions, uneven_sums
from .occupancy import CHIPS, programs
from .shipped import shipped
from .specialised import POINTERS, specialised

# unless each program computes many tiles, and copies the next one meanwhile
TWO_AT_A_TIME = ("linear", "tma_linear", "int8_linear")
# Constants that may differ between two launches for the same row: they follow from the number of rows, the longest row,
# which tokens are queries, or what is decided after the sums.
BY_BATCH = ("ROWS", "STEPS", "BLOCK_M", "QUERIES", "LAST", "ONCE", "CLAUSES", "CODES")
KINDS = ("bias", "of_keys", "of_queries", "window")  # arguments that are given for all rows of a model or for none


class Compiled(NamedTuple):
    kernel: str
    config: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instruction: str  # of matrix products: wgmma, mma or none; .s8 of int8; and whether tiles are copied by TMA
    expected: str  # the instruction that it must have; none where it does not matter
    programs: int  # that fit on a multiprocessor at a time
    expected_programs: int  # at least so many must
    kind: str  # the same for variants that may serve the same row
    reductions: tuple[Reduction, ...]  # of floats; those of whole numbers are the same in any order, and seldom
    one_warp: bool  # must each of them be within a warp?
    uneven: tuple[str, ...]  # instructions, see `uneven_sums`

    @property
    def warps(self) -> int:
        """Over how many warps a reduction is split, at most."""
        return max((reduction.warps for reduction in self.reductions), default=0)

    def faults(self) -> list[str]:
        where = f"{self.kernel} ({self.config}) on sm_{self.arch}"
        faults = []
        if self.spill_bytes:
            faults.append(f"{where} spills {self.spill_bytes} bytes of registers; make its tile smaller")
        shared = CHIPS[self.arch].shared_of_program
        if self.shared_bytes > shared:
            faults.append(f"{where} wants {self.shared_bytes} bytes of shared memory, there are {shared}")
        if self.expected not in ("none", self.instruction):
            faults.append(f"{where} has {self.instruction} where {self.expected} is expected")
        if self.programs < self.expected_programs:
            faults.append(
                f"{where} fits {self.programs} times on a multiprocessor, expected {self.expected_programs}; it has "
                f"{self.registers} registers and {self.shared_bytes} bytes of shared memory: limit them"
            )
        if self.one_warp and self.warps > 1:
            split = next(reduction for reduction in self.reductions if reduction.warps > 1)
            faults.append(f"{where} reduces over several warps ({split}); have a warp for each 16 rows of scores")
        if self.uneven:
            faults.append(
                f"{where} adds a product to that of another thread, in each without rounding its own "
                f"({self.uneven[0]}); write it as rounded_product"
            )
        return faults


def order_faults(found: list[Compiled]) -> list[str]:
    """Where variants of one kind do not add up in one order. Maxima may be split in any way: they have no rounding.

    A sum is known by what it adds, how many numbers, and along which axis of how many.
    """
    orders: dict[tuple[str, Sum], dict[frozenset[Order], Compiled]] = {}
    for one in found:
        sums = [
            (_sum(reduction), reduction.order)
            for reduction in one.reductions
            if not reduction.exact and reduction.length > 2  # a + b is b + a; see `uneven_sums`
        ]
        for what in {each for each, _ in sums}:
            order = frozenset(order for each, order in sums if each == what)
            orders.setdefault((one.kind, what), {}).setdefault(order, one)
    return [
        f"{next(iter(of.values())).kernel} adds up {length} numbers ({combines}) in {len(of)} orders, by the batch: "
        + "; ".join(f"{_shown(order)} in ({one.config}) on sm_{one.arch}" for order, one in of.items())
        for (_, (combines, length, _, _)), of in orders.items()
        if len(of) > 1
    ]


Sum = tuple[str, int, int, int]


def _sum(reduction: Reduction) -> Sum:
    return reduction.combines, reduction.length, reduction.axis, len(reduction.shape)


def _shown(order: frozenset[Order]) -> str:
    return " and ".join(f"strides {a} in a thread, {b} in a warp, {c} across warps" for a, b, c in sorted(order))


def build(launch: Launch, arch: int) -> Any:
    """The kernel of a launch as triton compiles it for a GPU of this compute capability, times 10."""
    return triton.compile(
        ASTSource(launch.kernel, *specialised(launch)), target=GPUTarget("cuda", arch, 32), options=launch.options
    )


def compiled(launch: Launch, arch: int) -> Compiled:
    _, constants, _ = specialised(launch)
    binary = build(launch, arch)
    ptx = binary.asm["ptx"]
    registers, spilled = _resources(binary.asm["cubin"])
    instruction = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none"
    instruction += ".s8" if re.search(r"mma(_async)?\.sync\.\S+\.s8\.s8", ptx) else ""
    instruction += "+tma" if "cp.async.bulk.tensor" in ptx else ""
    weight = launch.arguments.get("weight")
    in_int8, sixteen_bit = (
        weight is not None and weight.dtype == torch.int8,
        launch.constants.get("PRECISION") == "tf32",
    )
    rows = max(launch.constants.get(name, 0) for name in ("BLOCK_M", "WINDOW"))  # of any product
    warpgroup = arch >= 90 and rows >= 64
    kinds = [value.dtype for value in launch.arguments.values() if isinstance(value, Tensor)]
    dtype = next((POINTERS[kind][1:] for kind in kinds if kind != torch.int32), "")
    shown = {name: value for name, value in constants.items() if not isinstance(value, bool) or value}
    config = ", ".join([dtype, *(f"{name}={value}" for name, value in shown.items() if name in launch.constants)])
    expected = ("wgmma" if warpgroup else "mma") if sixteen_bit or in_int8 else "none"
    expected += ".s8" if in_int8 else ""
    expected += "+tma" if launch.blocks else ""
    kernel = launch.kernel.__name__.strip("_").removesuffix("_kernel")
    given = [name for name in KINDS if launch.arguments.get(name) is not None]
    fixed = {name: value for name, value in launch.constants.items() if name not in BY_BATCH}
    floats = next((kind for kind in kinds if kind in FLOATS), None)
    shared = binary.metadata.shared
    return Compiled(
        kernel, config, arch, registers, spilled, shared, instruction, expected,
        programs(arch, registers, launch.num_warps, shared),
        expected_programs=2 if kernel in TWO_AT_A_TIME and not launch.constants.get("PERSISTENT") else 1,
        kind=repr((kernel, arch, floats, given, fixed)),
        reductions=tuple(one for one in reductions(binary.asm["ttgir"]) if not one.element.startswith("i")),
        # with tables of distances, scores are gathered, which splits them; with fewer warps or more queries it spills
        one_warp=kernel == "attention" and not {"of_keys", "of_queries"} & {*given},
        uneven=tuple(uneven_sums(ptx)),
    )  # fmt: skip


def _resources(binary: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of spilled registers: local memory, which no kernel here uses otherwise."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump did not report registers: {said}")
    return int(found[1]), int(found[2]) + int(found[3])


QUICK = {  # hidden sizes and dtypes by compute capability; fp16 differs from bf16 in the names of instructions alone
    80: [((768,), (torch.float32,))],
    90: [((768,), (torch.bfloat16,))],
}
_work: list[tuple[Launch, int]] = []  # with arch; worker processes find it here, as kernels do not pickle


def _compiled(index: int) -> Compiled:
    return compiled(*_work[index])


def run(archs: tuple[int, ...], only: str | None = None, quick: bool = False) -> list[Compiled]:
    """Compile every shipped variant for every arch, with progress on stderr.

    only: kernels whose name contains this. quick: 40% of the variants, see `QUICK`.
    """
    from rich.console import Console
    from rich.progress import track

    _work.clear()
    for arch in archs:
        launches = [launch for models in QUICK[arch] for launch in shipped(*models)] if quick else shipped()
        wanted = [launch for launch in launches if only is None or only in launch.kernel.__name__]
        _work.extend((launch, arch) for launch in wanted if arch >= 90 or not launch.blocks)
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork"))
    with pool:
        every = pool.map(_compiled, range(len(_work)))
        return list(track(every, "compiling", len(_work), console=Console(stderr=True)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pfengine.kernels.report", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=CHIPS, help="compute capabilities")
    parser.add_argument("--quick", action="store_true", help="fp32 for one of both and bf16 for the other: 40%% of all")
    parser.add_argument("--only", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it")
    found = run(tuple(options.arch), options.only, options.quick)
    print(f"{'kernel':16} {'sm':>3} registers spilled shared programs warps  products  variant")
    for one in found:
        print(
            f"{one.kernel:16} {one.arch:3} {one.registers:9} {one.spill_bytes:7} {one.shared_bytes:6} "
            f"{one.programs:8} {one.warps or '-':>5} {one.instruction:>9}  {one.config}"
        )
    if options.json:
        rows = [{**one._asdict(), "reductions": [str(reduction) for reduction in one.reductions]} for one in found]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    faults = [fault for one in found for fault in one.faults()] + order_faults(found)
    print(*faults, sep="\n", file=sys.stderr)
    print(f"{len(found)} variants, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
