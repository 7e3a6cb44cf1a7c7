"""`python -m pfengine.kernels.report`: every kernel as it is shipped, compiled ahead of time; no GPU is needed.

Prints registers, spills, shared memory and the matrix instruction, and fails on a spill, on more shared memory than the
chip has, or where an instruction that is expected is missing.
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
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import configs
from .answers import Answers
from .attention import attention
from .compaction import compact
from .embedding import embed
from .exit_head import SIGNALS, exit_head
from .gate_merge import gate_merge
from .imitation import imitation
from .imitation_pooled import imitation_pooled
from .launch import FLOATS, Launch, recording
from .layer_norm import add_layer_norm
from .linear import linear
from .survivors import Survivors, remaining, survivors
from .thin_linear import thin_linear

SHARED = {80: 166_912, 90: 232_448}  # bytes a block may ask for
_POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8",
}  # fmt: skip


class Compiled(NamedTuple):
    kernel: str
    config: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instruction: str  # of matrix products: wgmma, mma or none
    expected: str  # that, or anything better; none where it does not matter

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


def shipped(hidden: tuple[int, ...] = (384, 768)) -> list[Launch]:
    """What the launchers launch for BERT-base's and a small BERT's sizes: each variant once."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    count, threshold = empty(1, dtype=torch.int32), empty(1)
    with recording() as launches:
        for size, rows, dtype in itertools.product(hidden, configs.ROWS, FLOATS):
            x, inner = empty(rows, size, dtype=dtype), empty(rows, 4 * size, dtype=dtype)
            vector, places = empty(size), empty(rows, dtype=torch.int32)
            linear(x, empty(3 * size, size, dtype=dtype), empty(3 * size), "none", count)
            linear(x, empty(3 * size, size, dtype=dtype), empty(3 * size), "none", count, places=places)
            for add_places in (None, places):
                linear(x, empty(size, size, dtype=dtype), vector, "none", count, add=x, add_places=add_places)
            linear(inner, empty(size, 4 * size, dtype=dtype), vector, "none", count, add=x)
            linear(x, empty(size, size, dtype=dtype), vector, "tanh", count, places=places, out_dtype=torch.float32)
            linear(x, empty(size, size, dtype=dtype), vector, "tanh", count, out_dtype=torch.float32)
            for activation in ("gelu", "gelu_tanh", "relu") if rows == configs.ROWS[-1] else ("gelu", "gelu_tanh"):
                linear(x, empty(4 * size, size, dtype=dtype), empty(4 * size), activation, count)
            for residual in (x, None):
                add_layer_norm(x, residual, vector, vector, 1e-12, count)
            ids, tables = empty(rows, dtype=torch.int64), tuple(empty(512, size, dtype=dtype) for _ in range(3))
            embed(ids, ids, ids, tables, vector, vector, 1e-12, count)  # type: ignore[arg-type]
            bounds, stay = empty(rows + 1, dtype=torch.int32), empty(rows, dtype=torch.bool)
            qkv = empty(rows, 3 * size, dtype=dtype)
            for head_size, longest, first_only in itertools.product((32, 64), (16, 32, 512), (False, True)):
                attention(qkv, bounds, size // head_size, 1.0, longest, count, first_only)
            if rows <= 4096:
                survivors(bounds, ids, stay, 512, count, Survivors.empty(rows, 8192, ids.device))
                remaining(ids, empty(2, dtype=torch.int32))
                compact(x, bounds, ids, stay, 512, count)
            for labels, signal in [*((2, signal) for signal in SIGNALS), (150, "entropy"), (1024, "entropy")]:
                weight, bias = empty(labels, size), empty(labels)
                exit_head(x, weight, bias, signal, threshold, count, places=places)
                if signal == "entropy":
                    to = Answers(ids, empty(rows, labels), ids, 3, ids, once=rows <= 512)
                    exit_head(x, weight, bias, signal, threshold, count, places=places, to=to)
                    exit_head(x, weight, bias, signal, threshold, count, to=to._replace(layers=None, last=True))
            for columns, before in itertools.product((2, 4, 48), (False, True)):
                past = {"add": empty(rows, columns), "add_places": places} if before else {}
                for states in (x, empty(rows, size)):
                    thin_linear(states, empty(columns, size), empty(columns), count, places=places, **past)
            for labels, activation in itertools.product((2, 150), ("tanh", "none")):
                learners = empty(11 * size, size, dtype=dtype)
                for states in (x, empty(rows, size)):
                    imitation(states, learners, empty(11 * size), empty(labels, 11 * size), activation, count)
                if activation == "tanh":
                    for pooling in ("max", "attention"):
                        pooled = empty(labels, size)
                        imitation_pooled(x, learners, empty(11 * size), pooled, activation, pooling, count)
            for labels, width, future in itertools.product((2, 150, 1024), ("row", "label"), (True, False)):
                gates = 1 if width == "row" else labels
                shares = (empty(132, rows, labels), empty(labels)) if future else None
                past, gate = empty(rows, labels + gates), (empty(gates, gates), empty(gates))
                to = Answers(ids, empty(rows, labels), ids, 3, last=not future, once=rows <= 512)
                gate_merge(past, labels, gates, "authors", "entropy", threshold, count, future=shares, gate=gate, to=to)
                if future:
                    gate_merge(past, labels, gates, "paper", "entropy", threshold, count, future=shares, to=to)
    return list({_key(launch): launch for launch in launches}.values())


def _key(launch: Launch) -> str:
    signature, constants, attributes = _specialised(launch)
    return repr((launch.kernel.__name__, signature, constants, attributes, launch.num_warps, launch.num_stages))


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """As triton specialises a launch: None and 1 are constants, and what is a multiple of 16 is known to be.

    Not where a kernel says do_not_specialize.
    """
    signature, constants, attributes = {}, dict(launch.constants), {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        divisible, plain = isinstance(value, Tensor), launch.kernel.params[i].do_not_specialize
        if name in constants or value is None or (isinstance(value, int) and value == 1 and not plain):
            constants.setdefault(name, value)
            signature[name] = "constexpr"
            continue
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        elif isinstance(value, int):
            signature[name], divisible = "i32", value % 16 == 0 and not plain
        else:
            signature[name] = "fp32"
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled(launch: Launch, arch: int) -> Compiled:
    signature, constants, attributes = _specialised(launch)
    binary = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True},
    )
    ptx = binary.asm["ptx"]
    registers, spilled = _resources(binary.asm["cubin"])
    instruction = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none"
    sixteen_bit = launch.constants.get("PRECISION") == "tf32"
    warpgroup = arch >= 90 and launch.constants.get("BLOCK_M", 0) >= 64
    kinds = {name: kind for name, kind in signature.items() if kind.startswith("*") and kind != "*i32"}
    dtype = next(iter(kinds.values()), "")[1:]
    shown = {name: value for name, value in constants.items() if not isinstance(value, bool) or value}
    config = ", ".join([dtype, *(f"{name}={value}" for name, value in shown.items() if name in launch.constants)])
    expected = ("wgmma" if warpgroup else "mma") if sixteen_bit else "none"
    return Compiled(
        launch.kernel.__name__.strip("_").removesuffix("_kernel"), config, arch, registers, spilled,
        binary.metadata.shared, instruction, expected,
    )  # fmt: skip


def _resources(binary: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory, which no kernel here asks for: spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {said}")
    return int(found[1]), int(found[2]) + int(found[3])


def _compiled(job: tuple[int, int]) -> Compiled:
    return compiled(_launches[job[0]], job[1])


_launches: list[Launch] = []  # of the run, for worker processes: kernels do not travel


def run(archs: tuple[int, ...], only: str | None = None, jobs: int | None = None) -> list[Compiled]:
    """Every shipped variant on every arch, with progress on stderr. only: kernels whose name holds this."""
    from rich.progress import track

    _launches[:] = [launch for launch in shipped() if only is None or only in launch.kernel.__name__]
    work = list(itertools.product(range(len(_launches)), archs))
    pool = ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=multiprocessing.get_context("fork"))
    with pool:
        from rich.console import Console

        return list(track(pool.map(_compiled, work), "compiling", len(work), console=Console(stderr=True)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pfengine.kernels.report", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=SHARED, help="compute capabilities")
    parser.add_argument("--only", help="kernels whose name holds this")
    parser.add_argument("--json", type=Path, help="write the table there")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it")
    found = run(tuple(options.arch), options.only)
    print(f"{'kernel':16} {'sm':>3} {'registers':>9} {'spilled':>7} {'shared':>7} {'products':>8}  variant")
    for one in found:
        print(
            f"{one.kernel:16} {one.arch:3} {one.registers:9} {one.spill_bytes:7} {one.shared_bytes:7} "
            f"{one.instruction:>8}  {one.config}"
        )
    if options.json:
        options.json.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n")
    faults = [fault for one in found for fault in one.faults()]
    print(*faults, sep="\n", file=sys.stderr)
    print(f"{len(found)} variants, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
