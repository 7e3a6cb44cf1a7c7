"""No kernel reads or writes beyond a buffer: each of them ends where memory ends."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfengine import extension
from pfengine.ops import cpu
from pfengine.ops.packing import pack_linear

if not extension.has_cpu() or not hasattr(os, "fork"):
    pytest.skip("needs pfengine._C and a child that may die", allow_module_level=True)

C = extension._C
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
NO_ACCESS = 0  # PROT_NONE, which the mmap module lacks
_kept: list[Any] = []


def at_the_end(tensor: Tensor) -> int:
    """The address of a copy whose last byte is the last of its page; the page after it may not be touched."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    pages = -(-data.nbytes // mmap.PAGESIZE) + 1
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guard = start + (pages - 1) * mmap.PAGESIZE
    ctypes.memmove(guard - data.nbytes, data.ctypes.data, data.nbytes)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), NO_ACCESS) == 0
    return guard - data.nbytes


def room(*shape: int, dtype: torch.dtype = torch.float32) -> int:
    return at_the_end(torch.zeros(shape, dtype=dtype))


def linear(inputs: int, outputs: int, dtype: torch.dtype, row_major: bool = False, bits: int = 8) -> Any:
    packed = pack_linear(torch.randn(outputs, inputs) / 8, torch.randn(outputs), dtype, row_major=row_major, bits=bits)
    weights, *factors, bias = (at_the_end(tensor) for tensor in packed.tensors)
    scale, weight_sum = factors or (0, 0)
    sizes = {"inputs": inputs, "outputs": outputs, "row_major": row_major}
    return C.Linear(weights=weights, scale=scale, weight_sum=weight_sum, bias=bias, **sizes)


def norm(size: int) -> Any:
    return C.Norm(weight=room(size), bias=room(size), eps=1e-5)


def distances(heads: int, head_size: int, most: int, dtype: torch.dtype) -> Any:
    """Of rows of up to `most` tokens; the longest row reads the last of them."""
    words, stride = head_size // (1 if dtype == torch.float32 else 2), 2 * most - 1 + C.DISTANCE_ZEROS
    tables = {name: room(heads, words, stride) for name in ("keys", "queries")}
    return C.Distances(heads=heads, words=words, most=most, bias=room(heads, stride), **tables)


def kind_of(modern: bool, heads: int, head_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a block has of ModernBERT or of DeBERTa."""
    if not modern:
        tables = distances(heads, head_size, 17, dtype)
        return {"distances": tables, "norm_first": False, "gated": False, "rotary": None, "window": None}
    half = head_size // 2
    rotary = C.Rotary(half=half, most=17, angles=room(17, 2 * half)) if half else None
    return {"distances": None, "norm_first": True, "gated": True, "rotary": rotary, "window": 3}


def run_everything(dtype: torch.dtype, head_size: int, modern: bool) -> None:
    heads, hidden, inner, rows, tokens = 2, 2 * head_size + 1, 31, 3, 26
    precision = getattr(C.Precision, {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}[dtype])
    sizes = {"qkv": (hidden, 3 * heads * head_size), "attention_output": (heads * head_size, hidden),
             "intermediate": (hidden, inner), "output": (inner, hidden)}  # fmt: skip
    if modern:
        half = cpu.kernels().panel // 2
        sizes["intermediate"] = hidden, 2 * half * -(-inner // half)
    block = C.Block(
        precision=precision, activation=C.Activation.gelu, heads=heads, head_size=head_size, scale=0.2,
        attention_norm=norm(hidden), output_norm=norm(hidden), **kind_of(modern, heads, head_size, dtype),
        **{k: linear(*v, dtype) for k, v in sizes.items()},
    )  # fmt: skip
    x = at_the_end(torch.randn(tokens, hidden))
    borders = at_the_end(torch.tensor([0, 1, 9, 26]).int())
    kept = room(tokens * C.kept_stride(block), dtype=torch.uint8)
    queries, bounds, targets = (
        at_the_end(torch.tensor(x).int()) for x in ([3, 8, 11, 12, 25], [0, 0, 2, 5], [0, 1, 3, 4, 6])
    )
    for threads in (1, 2):
        batch = (cpu.kernels(), block, x, tokens, borders, rows)
        C.keys_values(*batch, kept, threads)
        for keys_values in (0, kept):
            for kind, count in ((C.Queries.all, tokens), (C.Queries.firsts, rows)):
                sums = room(count, hidden)
                C.run_block(*batch, kind, count, 0, 0, 0, keys_values, room(count, hidden), count, sums, threads)
            chosen = (C.Queries.list, 5, queries, bounds, targets, keys_values)
            C.run_block(*batch, *chosen, room(7, hidden), 7, room(7, hidden), threads)
        C.run_norm(cpu.kernels(), norm(hidden), x, tokens, hidden, room(tokens, hidden), threads)
        ids = at_the_end(torch.arange(tokens) % 7)
        tables = {name: room(7, hidden, dtype=torch.bfloat16) for name in ("word", "position", "token_type")}
        embedding = C.Embedding(
            **tables, words=7, positions=7, token_types=7, size=hidden, bf16=True, norm=norm(hidden)
        )
        C.run_embed(cpu.kernels(), embedding, ids, ids, ids, tokens, room(tokens, hidden), threads)
        gate = linear(3, 3, torch.float32, row_major=True)
        learned = C.Precision.int4 if dtype == torch.int8 else precision
        exit = C.Exit(
            precision=precision, learner_precision=learned, pooler=linear(hidden, hidden, dtype),
            pooler_activation=C.Activation.relu, pooler_norm=norm(hidden),
            past=linear(hidden, 6, torch.float32, row_major=True), folded=None, reads=C.Reads.first,
            learned=linear(hidden, 1, torch.float32, row_major=True),
            learners=linear(hidden, 2 * hidden, dtype, bits=4), activation=C.Activation.tanh,
            projection=linear(2 * hidden, 3, torch.float32, row_major=True),
            merge=C.Merge(kind=C.Gate.authors, labels=3, width=3, gate=gate, gate_states=2), attentive=None,
            queries=None,
        )  # fmt: skip
        add, past, logits = room(rows, 6), room(rows, 6), room(rows, 3)
        C.run_exit(cpu.kernels(), exit, x, add, rows, past, logits, room(rows), threads)
        for pooling in (C.TokenPooling.first, C.TokenPooling.max):
            attentive = C.Attentive(
                precision=precision, heads=heads, head_size=head_size, scale=0.2, narrow=linear(hidden, 9, dtype),
                qkv=linear(9, 3 * heads * head_size, dtype), output=linear(heads * head_size, 9, dtype),
                pooling=pooling,
            )  # fmt: skip
            C.run_attentive(cpu.kernels(), attentive, x, tokens, borders, rows, room(rows, 9), threads)
        C.run_signal("energy", logits, rows, 3, 2.0, room(rows))
        C.run_mean(x, tokens, borders, rows, hidden, room(rows, hidden))
        for count in (1, hidden):
            weighing = C.QueryMean(queries=room(hidden, -(-count // 16) * 16), count=count, size=hidden)
            C.run_query_mean(cpu.kernels(), weighing, x, tokens, borders, rows, room(rows, hidden), threads)
        numbers = np.ones((1, 1), np.float32)
        clauses = [C.Clause(signal, "<", numbers, "range", numbers, 3, numbers) for signal in ("change", "energy")]
        rule = C.ExitRule(b"\1", clauses, C.TokenRule("token", "max", 3, True))
        slots, leave = at_the_end(torch.arange(tokens)), room(tokens, dtype=torch.bool)
        C.run_decide(rule, 1, room(tokens, 3), 0, tokens, 3, borders, rows, slots, room(tokens, 9), leave)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "avx512_bf16"])
def test_buffers_end_where_memory_ends(instructions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if C.find_kernels(instructions) is None:
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setenv("PFENGINE_ISA", instructions)
    cpu.kernels.cache_clear()
    try:
        pid = os.fork()
        if not pid:
            size = 0
            try:
                for size in (1, 7, 15, *range(31, 49)) if dtype == torch.float32 else range(2, 68, 4):
                    for modern in (False, True):
                        run_everything(dtype, size, modern)
                    _kept.clear()
                size = 0
            finally:
                os._exit(size)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"ended by signal {status & 127}, at head size {status >> 8}"
    finally:
        cpu.kernels.cache_clear()
