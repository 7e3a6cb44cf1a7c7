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
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import configs
from .answers import answer
from .attention import attention
from .decide import Decided, ExitTest, Form
from .decide_tokens import decide_tokens
from .embedding import embed
from .exit_head import exit_head
from .imitation_pooled import imitation_pooled
from .launch import FLOATS, Launch, recording
from .layer_norm import Others, add_layer_norm
from .linear import linear
from .mean import maximum, mean
from .past_future import Folded, Imitated, past_future
from .query_mean import query_mean
from .rotate import rotate
from .signals import NAMES, signals
from .survivors import Survivors, remaining, survivors
from .thin_linear import thin_linear
from .token_list import TokenList

SHARED = {80: 166_912, 90: 232_448}  # bytes that a block may have
PROCESSORS = 132  # of a chip with the Tensor Memory Accelerator; the number changes no kernel
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
    instruction: str  # of matrix products: wgmma, mma or none; and whether tiles are copied by TMA
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


ENTROPY = Form("entropy", "<")
RULES = (  # each signal and each memory once, not their product
    (Form("confidence", ">", "side", 3, tempered=True), Form("layer", ">=", threshold=0)),
    (Form("label", ">=", "votes"), Form("normalised_entropy", "<", "trend", 3)),
    (Form("margin", ">", "range", 3), Form("label_repeats", ">=", "running", times=0)),
    (Form("change", "<"), Form("energy", "<=", "sum", tempered=True)),
    (Form("learned", "<"), Form("label_0", ">", threshold=0)),
)


def shipped(hidden: tuple[int, ...] = (384, 768)) -> list[Launch]:
    """What the launchers launch for the sizes of BERT-base and a small BERT: each variant once."""
    with recording() as launches:
        for size, rows, dtype in itertools.product(hidden, configs.ROWS, FLOATS):
            _layers(size, rows, dtype)
            _exits(size, rows, dtype)
        _rules()
        _tokens()
    with recording(processors=PROCESSORS) as by_descriptors:
        for size, rows, dtype in itertools.product(hidden, configs.ROWS, FLOATS):
            _layers(size, rows, dtype)
    return list({_key(launch): launch for launch in (*launches, *by_descriptors)}.values())


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _layers(size: int, rows: int, dtype: torch.dtype) -> None:
    count, ids = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int64)
    x, inner, vector = _empty(rows, size, dtype=dtype), _empty(rows, 4 * size, dtype=dtype), _empty(size)
    source_rows = _empty(rows, dtype=torch.int32)
    for columns in (3 * size, 2 * size):  # queries, keys and values; keys and values alone
        for sources in (None, source_rows):
            linear(x, _empty(columns, size, dtype=dtype), _empty(columns), "none", count, source_rows=sources)
    linear(x, _empty(size, size, dtype=dtype), vector, "none", count, source_rows=source_rows)  # listed queries
    for sources in (None, source_rows):
        linear(x, _empty(size, size, dtype=dtype), vector, "none", count, add=x, add_source_rows=sources)
    linear(inner, _empty(size, 4 * size, dtype=dtype), vector, "none", count, add=x)
    for sources, out_dtype in itertools.product((None, source_rows), {torch.float32, dtype}):
        pooler = _empty(size, size, dtype=dtype), vector
        linear(x, *pooler, "tanh", count, out_dtype=out_dtype, source_rows=sources)
    for activation in ("gelu", "gelu_tanh", "relu") if rows == configs.ROWS[-1] else ("gelu", "gelu_tanh"):
        linear(x, _empty(4 * size, size, dtype=dtype), _empty(4 * size), activation, count)
    for residual in (x, None):
        add_layer_norm(x, residual, vector, vector, 1e-12, count)
    for sources, again in itertools.product((None, source_rows), (False, True)):
        sums, others = x if again else None, Others(x, sources, again)
        add_layer_norm(x, None, vector, vector, 1e-12, count, source_rows=source_rows, others=others, sums=sums)
    tables = tuple(_empty(512, size, dtype=dtype) for _ in range(3))
    embed(ids, ids, ids, tables, vector, vector, 1e-12, count)  # type: ignore[arg-type]
    bounds, qkv = _empty(rows + 1, dtype=torch.int32), _empty(rows, 3 * size, dtype=dtype)
    for head_size, longest in itertools.product((32, 64), (16, 512)):
        for queries in ("all", "first"):
            attention(qkv, bounds, size // head_size, 1.0, longest, count, queries)  # type: ignore[arg-type]
        listed = _empty(rows, 2 * size, dtype=dtype), (x, bounds)
        attention(listed[0], bounds, size // head_size, 1.0, longest, count, listed[1])
        heads = size // head_size
        bias, bucket = _empty(heads, 2 * 512 - 1), _empty(2 * 512 - 1, dtype=torch.int32)
        tables = _empty(heads, 512, head_size, dtype=dtype), _empty(heads, 512, head_size, dtype=dtype)
        for distances in ((bias, None, None, None), (None, bucket, *tables)):
            attention(qkv, bounds, heads, 1.0, longest, count, "all", distances)
            attention(listed[0], bounds, heads, 1.0, longest, count, listed[1], distances, source_rows)
    _norms_first(x, bounds, source_rows, count)
    for out_dtype in {torch.float32, dtype}:
        mean(x, bounds, count, out_dtype)
        query_mean(x, bounds, _empty(size // 32, size), count, out_dtype)
    _attentive(x, bounds, count)
    if rows <= 4096:
        leave, out = _empty(rows, dtype=torch.bool), Survivors.empty(rows, 8192, ids.device)
        survivors(bounds, ids, leave, 512, count, out)
        survivors(bounds, ids, leave, 512, count, out, earlier_rows=out.source_rows, earlier_firsts=out.source_firsts)
        survivors(bounds, ids, leave, 512, count, out, earlier_rows=out.source_rows)
        remaining(ids, _empty(2, dtype=torch.int32))


def _norms_first(x: Tensor, bounds: Tensor, source_rows: Tensor, count: Tensor) -> None:
    """What ModernBERT's layers launch that others do not."""
    (rows, size), dtype, vector, angles = x.shape, x.dtype, _empty(x.shape[1]), _empty(512, 64)
    linear(x, _empty(3 * size, size, dtype=dtype), _empty(3 * size), "gelu", count, gated=True)
    add_layer_norm(x, None, vector, vector, 1e-5, count, source_rows=source_rows)
    add_layer_norm(x, None, None, None, 0.0, count, source_rows=source_rows, others=Others(x, source_rows, False))
    for some in ((), (bounds, source_rows)):
        rotate(x, bounds, angles, size // 64, 64, 512, count, *some)
    for longest, queries in itertools.product((16, 512), ("all", "first", (x, bounds))):
        parts, tokens = (3, None) if isinstance(queries, str) else (2, source_rows)
        read = _empty(rows, parts * size, dtype=dtype)
        attention(read, bounds, size // 64, 1.0, longest, count, queries, None, tokens, 64)  # type: ignore[arg-type]


def _attentive(x: Tensor, bounds: Tensor, count: Tensor, width: int = 128, heads: int = 2) -> None:
    """FastBERT's classifiers up to what their exits read."""
    size, dtype = x.shape[1], x.dtype

    def weights(columns: int, inner: int) -> tuple[Tensor, Tensor]:
        return _empty(columns, inner, dtype=dtype), _empty(columns)

    narrow = linear(x, *weights(width, size), "tanh", count)
    qkv = linear(narrow, *weights(3 * width, width), "none", count)
    for longest in (16, 512):
        first = attention(qkv, bounds, heads, 1.0, longest, count, "first")
        every = attention(qkv, bounds, heads, 1.0, longest, count)
    pooled = linear(first, *weights(width, width), "none", count)
    maximum(linear(every, *weights(width, width), "none", count), bounds, count, dtype)
    linear(pooled, *weights(width, width), "tanh", count, out_dtype=torch.float32)


def _exits(size: int, rows: int, dtype: torch.dtype) -> None:
    """Exits with the entropy criterion, which most checkpoints have."""
    count, ids, source_rows = (
        _empty(n, dtype=t) for n, t in ((1, torch.int32), (rows, torch.int64), (rows, torch.int32))
    )
    x, wide = _empty(rows, size, dtype=dtype), _empty(rows, size)
    arrived, guesses = _empty(rows, dtype=torch.int32), (_empty(11 * size, size, dtype=dtype), _empty(11 * size))
    for labels in (2, 16, 150, 1024):
        weight, bias = _empty(labels, size), _empty(labels)
        to = {"slots": ids, "to_logits": _empty(rows, labels), "to_layers": ids, "once": rows <= 512}
        tests = ExitTest(3, (ENTROPY,), _empty(1, 3), **to), ExitTest(12, last=True, **to), ExitTest(3)
        for test in tests:
            exit_head(x, weight, bias, test, count, source_rows=None if test.last else source_rows)
        often, last, stop = tests[0]._replace(once=False), tests[1]._replace(once=False), tests[2]
        ahead, add = Imitated(*guesses, "tanh", _empty(labels, 11 * size), bias), _empty(rows, 2 * labels)
        past, gate = (_empty(2 * labels, size), _empty(2 * labels)), (_empty(labels, labels), bias)
        authors = past, labels, labels, "authors"
        before = {"add": add, "add_source_rows": source_rows}
        past_future(x, *authors, tests[0], count, arrived, future=ahead, gate=gate, **before)
        past_future(wide, *authors, stop, count, arrived, future=ahead, gate=gate, source_rows=source_rows)
        past_future(wide, past, labels, 1, "authors", last, count, arrived, gate=(_empty(1, 1), _empty(1)))
        past_future(wide, past, labels, 1, "paper", often, count, arrived, future=Folded(weight, bias))
        past_future(x, past, labels, 0, "none", often, count, arrived, future=ahead._replace(activation="none"))
        learned = often._replace(learned=_empty(rows))
        past_future(x, past, labels, 0, "none", learned, count, arrived, learned=(_empty(1, size), _empty(1)))
    for states, before in itertools.product((x, wide), (False, True)):
        add = {"add": _empty(rows, 4), "add_source_rows": source_rows} if before else {}
        thin_linear(states, _empty(4, size), _empty(4), count, source_rows=source_rows, **add)
    for labels, pooling in itertools.product((2, 150), ("max", "attention")):
        imitation_pooled(x, *guesses, _empty(labels, size), "tanh", pooling, count)  # type: ignore[arg-type]


def _rules(rows: int = 256, size: int = 768) -> None:
    count, slots = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int64)
    for labels, forms in itertools.product((2, 150), RULES):
        width, out = sum(form.width(labels) for form in forms), Decided.empty(rows, labels, slots.device)
        state_in, state_out = (_empty(rows, width) if width else None for _ in range(2))
        to = {"slots": slots, "to_logits": _empty(rows, labels), "to_layers": slots, "learned": _empty(rows)}
        for earlier in (None, state_in) if width else (None,):
            test = ExitTest(3, forms, _empty(2, 3), _empty(1, rows), earlier, state_out, **to)
            exit_head(_empty(rows, size), _empty(labels, size), _empty(labels), test, count, out=out)
            past, future = (_empty(2 * labels, size), _empty(2 * labels)), Folded(_empty(labels, size), _empty(labels))
            arrived = _empty(rows, dtype=torch.int32)
            past_future(
                _empty(rows, size), past, labels, labels, "paper", test, count, arrived, future=future, out=out
            )
    for labels, name in itertools.product((2, 1024), NAMES):
        signals(name, _empty(rows, labels), 0.5 if name in ("confidence", "energy") else 1.0)
        answer(out.leave, _empty(rows, labels), slots, count, 3, _empty(rows, labels), slots,
               source_rows=_empty(rows, dtype=torch.int32))  # fmt: skip


def _tokens(rows: int = 256, tokens: int = 8192, size: int = 768) -> None:
    """Exits of heads that score tokens, and the lists of who is left after them."""
    count, counts = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int32)
    bounds, slots, leave = (
        _empty(n, dtype=t) for n, t in ((rows + 1, torch.int32), (rows, torch.int64), (rows, torch.bool))
    )
    kinds = torch.int64, torch.uint8, torch.bool, torch.int32
    to_layers, frozen, given, sources = (_empty(tokens, dtype=kind) for kind in kinds)
    for names in ((), ("earlier_firsts",), ("earlier_rows", "earlier_firsts")):
        survivors(
            bounds, slots, leave, 512, count, Survivors.empty(rows, tokens, slots.device), frozen=frozen, asking=counts,
            tokens=TokenList.empty(rows, tokens, slots.device), **dict.fromkeys(names, counts),  # type: ignore[arg-type]
        )  # fmt: skip
    words = _empty(tokens, dtype=torch.int32)
    of_rows = bounds, count, frozen, leave, counts, words, words
    for labels in (2, 17, 150, 1024):
        logits = _empty(tokens, labels)
        to = {"slots": slots, "to_logits": logits, "to_layers": to_layers}
        for moved in (sources, None):
            for mask, answers in ((given, True), (given, False), (None, False)):
                decide_tokens(ExitTest(3, **to), logits, *of_rows, given=mask, answers=answers, source_rows=moved)
        for forms in ((ENTROPY,), *(forms for forms in RULES if forms[0].signal != "learned")):
            own, kept = sum(form.own(labels) for form in forms), sum(form.kept(labels) for form in forms)
            numbers, by_slot, out = (
                _empty(len(forms), 3),
                _empty(1, tokens),
                Decided.empty(tokens, labels, slots.device, len(forms)),
            )
            alone, memory = tuple(form.signal_alone() for form in forms), _empty(tokens, own) if own else None
            weight, bias = _empty(labels, size), _empty(labels)
            for earlier in (None, memory) if own else (None,):
                signals_alone = ExitTest(3, alone, numbers, None, earlier, memory, slots=to_layers)
                exit_head(_empty(tokens, size), weight, bias, signals_alone, count, out=out)
            labelled = own > 0 or any(form.memory in ("votes", "sum") for form in forms)
            memory = _empty(tokens, kept) if kept else None
            for earlier in (None, memory) if kept else (None,):
                test = ExitTest(3, forms, numbers, by_slot, earlier, memory, **to)
                for pool, freezes in (("window", True), *([] if labelled else [("max", False), ("mean", False)])):
                    decide_tokens(
                        test,
                        logits,
                        *of_rows,
                        signals=out.signals,
                        pool=pool,
                        window=3,
                        freezes=freezes,  # type: ignore[arg-type]
                    )


def _key(launch: Launch) -> str:
    signature, constants, attributes = _specialised(launch)
    return repr((launch.kernel.__name__, signature, constants, attributes, *launch[4:]))


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and attributes, as triton specialises a launch.

    None and 1 become constants, and multiples of 16 are marked, except where a kernel says do_not_specialize.
    """
    signature, constants, attributes, blocks = {}, dict(launch.constants), {}, launch.blocks or {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        divisible, plain = isinstance(value, Tensor), launch.kernel.params[i].do_not_specialize
        if name in constants or value is None or (isinstance(value, int) and value == 1 and not plain):
            constants.setdefault(name, value)
            signature[name] = "constexpr"
            continue
        if name in blocks:
            signature[name], divisible = f"tensordesc<{_POINTERS[value.dtype][1:]}{blocks[name]}>", False
        elif isinstance(value, Tensor):
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
        options=launch.options,
    )
    ptx = binary.asm["ptx"]
    registers, spilled = _resources(binary.asm["cubin"])
    instruction = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none"
    instruction += "+tma" if "cp.async.bulk.tensor" in ptx else ""
    sixteen_bit = launch.constants.get("PRECISION") == "tf32"
    rows = max(launch.constants.get(name, 0) for name in ("BLOCK_M", "WINDOW"))  # of any product
    warpgroup = arch >= 90 and rows >= 64
    kinds = (value.dtype for value in launch.arguments.values() if isinstance(value, Tensor))
    dtype = next((_POINTERS[kind][1:] for kind in kinds if kind != torch.int32), "")
    shown = {name: value for name, value in constants.items() if not isinstance(value, bool) or value}
    config = ", ".join([dtype, *(f"{name}={value}" for name, value in shown.items() if name in launch.constants)])
    expected = ("wgmma" if warpgroup else "mma") if sixteen_bit else "none"
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
