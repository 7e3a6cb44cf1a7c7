"""`python -m pfengine.kernels.report`: compiles every kernel ahead of time as it is shipped. No GPU is needed.

Prints registers, spills, shared memory and the matrix instruction. It fails on a spill, on more shared memory than the
chip has, and where an expected matrix instruction is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Launch
from .shipped import shipped
from .specialised import POINTERS, specialised

SHARED = {80: 166_912, 90: 232_448}  # bytes that a block may have


class Compiled(NamedTuple):
    kernel: str
    config: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instruction: str  # of matrix products: wgmma, mma or none; .s8 of int8; and whether tiles are copied by TMA
    expected: str  # the instruction that it must have; none where it does not matter

    def faults(self) -> list[str]:
        where = f"{self.kernel} ({self.config}) on sm_{self.arch}"
        faults = []
        if self.spill_bytes:
            faults.append(f"{where} spills {self.spill_bytes} bytes of registers; make its tile smaller")
        if self.shared_bytes > SHARED[self.arch]:
            faults.append(f"{where} wants {self.shared_bytes} bytes of shared memory, there are {SHARED[self.arch]}")
        if self.expected not in ("none", self.instruction):
            faults.append(f"{where} has {self.instruction} where {self.expected} is expected")
        return faults


def compiled(launch: Launch, arch: int) -> Compiled:
    signature, constants, attributes = specialised(launch)
    binary = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options=launch.options,
    )
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
    kinds = (value.dtype for value in launch.arguments.values() if isinstance(value, Tensor))
    dtype = next((POINTERS[kind][1:] for kind in kinds if kind != torch.int32), "")
    shown = {name: value for name, value in constants.items() if not isinstance(value, bool) or value}
    config = ", ".join([dtype, *(f"{name}={value}" for name, value in shown.items() if name in launch.constants)])
    expected = ("wgmma" if warpgroup else "mma") if sixteen_bit or in_int8 else "none"
    expected += ".s8" if in_int8 else ""
    expected += "+tma" if launch.blocks else ""
    return Compiled(
        launch.kernel.__name__.strip("_").removesuffix("_kernel"), config, arch, registers, spilled,
        binary.metadata.shared, instruction, expected,
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


def _compiled(job: tuple[int, int]) -> Compiled:
    return compiled(_launches[job[0]], job[1])


_launches: list[Launch] = []  # for worker processes, as kernels do not pickle


def run(archs: tuple[int, ...], only: str | None = None, jobs: int | None = None) -> list[Compiled]:
    """Compile every shipped variant for every arch, with progress on stderr. only: kernels whose name contains this."""
    from rich.console import Console
    from rich.progress import track

    _launches[:] = [launch for launch in shipped() if only is None or only in launch.kernel.__name__]
    pairs = itertools.product(range(len(_launches)), archs)
    work = [(i, arch) for i, arch in pairs if arch >= 90 or not _launches[i].blocks]
    pool = ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=multiprocessing.get_context("fork"))
    with pool:
        return list(track(pool.map(_compiled, work), "compiling", len(work), console=Console(stderr=True)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pfengine.kernels.report", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=SHARED, help="compute capabilities")
    parser.add_argument("--only", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it")
    found = run(tuple(options.arch), options.only)
    print(f"{'kernel':16} {'sm':>3} {'registers':>9} {'spilled':>7} {'shared':>7} {'products':>9}  variant")
    for one in found:
        print(
            f"{one.kernel:16} {one.arch:3} {one.registers:9} {one.spill_bytes:7} {one.shared_bytes:7} "
            f"{one.instruction:>9}  {one.config}"
        )
    if options.json:
        options.json.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n")
    faults = [fault for one in found for fault in one.faults()]
    print(*faults, sep="\n", file=sys.stderr)
    print(f"{len(found)} variants, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
