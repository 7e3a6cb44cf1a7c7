"""pfengine._C, the compiled extension: whether it is there, and its compaction. Without it the engine runs on torch."""

from __future__ import annotations

import importlib.util
import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import cpu_count, forking
from .torch_state import kept_to_one_thread

_missing = ""  # why _C is not there; empty where it is


class _Missing:
    """Stands for `_C` where it is missing: whatever is asked of it raises RuntimeError."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"the compiled kernels are not available: {status()}")


try:
    from . import _C as _C
except ImportError as error:
    built = importlib.util.find_spec(f"{__package__}._C") is not None
    _missing = f"it cannot be loaded: {error}" if built else "it was not built"
    _C = _Missing()  # type: ignore[assignment]

log = logging.getLogger("pfengine")
Compacted = tuple[Tensor, Tensor, Tensor]  # tokens [T, ...], cu_seqlens int32 [R + 1], row_ids int64 [R]
_CPU = torch.device("cpu")  # faster than torch's parsing of the name
_warned = threading.Lock()  # acquired once, never released


def has_cpu() -> bool:
    """Is the C++ code there?"""
    return not _missing


def threads() -> int:
    """How many threads one call of `_C` may use: torch's number, but no more than this process has processors.

    The child of a fork has its parent's number. 1 in a thread that is one of several (`torch_state`).
    """
    if kept_to_one_thread():
        return 1
    return min(forking.torch_threads(), cpu_count.available())


def status() -> str:
    """Is it there, and if not, why, in one line."""
    return f"no pfengine._C: {_missing}" if _missing else "pfengine._C is there"


def warn_once() -> None:
    """Log, once per process, that _C is missing and what that costs."""
    if _missing and _warned.acquire(blocking=False):
        log.warning(
            "pfengine._C is missing (%s): layers run on torch operations, slower and without int8; for the fast "
            "kernels install pfengine again where there is a C++ compiler",
            _missing,
        )


def address(name: str, x: Tensor | None, dtype: torch.dtype, shape: Sequence[int], *, apart: bool = False) -> int:
    """The address of x's first number, for _C, which cannot check it; 0 for None.

    apart: x is [rows, columns], and there may be gaps between its rows. Raises ValueError where x has another dtype or
    shape, is not on the CPU, or is not contiguous.
    """
    if x is None:
        return 0
    if x.dtype is not dtype or x.shape != shape or not x.is_cpu or not (x.is_contiguous() or (apart and in_rows(x))):
        spread = "" if x.is_contiguous() else ", not contiguous,"
        raise ValueError(
            f"{name} is {x.dtype} {list(x.shape)}{spread} on {x.device}, expected contiguous {dtype} {list(shape)} on "
            "the CPU"
        )
    return x.data_ptr()


def new_output(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, int]:
    """A new, uninitialised CPU tensor for _C to fill, and its address."""
    out = torch.empty(shape, dtype=dtype, device=_CPU)
    return out, out.data_ptr()


def in_rows(x: Tensor) -> bool:
    """Is x [rows, columns], each row contiguous, and no row overlapping another, as rows of an expanded tensor do?"""
    return x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1) and (x.stride(0) >= x.shape[1] or len(x) < 2)


def signal(name: str, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`ops.decide.signal` of CPU tensors, with the same bits as flights in `_C`: [..., C] -> float32 [...]."""
    logits = logits.float().contiguous()
    rows, labels = logits.shape[:-1], logits.shape[-1]
    out, to = new_output(rows, torch.float32)
    at = address("logits", logits, torch.float32, logits.shape)
    _C.run_signal(name, at, out.numel(), labels, temperature, to)
    return out


def compact(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> Compacted:
    """The rows of a ragged batch where `stay` is true, moved together in the same order; CPU tensors.

    tokens: [T, ...], any dtype; cu_seqlens: int32 [R + 1], rising from 0 to T; row_ids: int64 [R]; stay: bool [R].
    Raises ValueError where these do not fit together, RuntimeError where _C is missing.
    """
    tokens, cu_seqlens, row_ids, stay = _checked(tokens, cu_seqlens, row_ids, stay)
    rows = row_ids.shape[0]
    bounds, staying = (
        address("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        address("stay", stay, torch.bool, (rows,)),
    )
    kept = _C.count_kept(bounds, staying, rows, tokens.shape[0])
    out = _empty(tokens, cu_seqlens, row_ids, *kept)
    _C.compact(
        tokens=address("tokens", tokens, tokens.dtype, tokens.shape),
        width_bytes=_width_bytes(tokens),
        cu_seqlens=bounds,
        row_ids=address("row_ids", row_ids, torch.int64, (rows,)),
        stay=staying,
        rows=rows,
        new_tokens=address("new_tokens", out[0], tokens.dtype, (kept[1], *tokens.shape[1:])),
        new_cu_seqlens=address("new_cu_seqlens", out[1], torch.int32, (kept[0] + 1,)),
        new_row_ids=address("new_row_ids", out[2], torch.int64, (kept[0],)),
        threads=threads(),
    )
    return out


def _empty(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, rows: int, kept_tokens: int) -> Compacted:
    return tokens.new_empty((kept_tokens, *tokens.shape[1:])), cu_seqlens.new_empty(rows + 1), row_ids.new_empty(rows)


def _width_bytes(tokens: Tensor) -> int:
    return math.prod(tokens.shape[1:]) * tokens.element_size()


def _checked(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> tuple[Tensor, ...]:
    """The four tensors, contiguous. Raises an error for whatever would make _C access memory that is not theirs."""
    if _missing:
        raise RuntimeError(f"compaction is not available: {status()}")
    if not tokens.dim():
        raise ValueError("tokens has no dimensions, expected [T, ...]")
    if tokens.requires_grad and torch.is_grad_enabled():
        raise ValueError("tokens requires a gradient, which compaction does not support; index with torch instead")
    rows = row_ids.shape[0] if row_ids.dim() else 0
    for name, tensor, dtype, shape in (
        ("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        ("row_ids", row_ids, torch.int64, (rows,)),
        ("stay", stay, torch.bool, (rows,)),
    ):
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
    tensors = {"tokens": tokens, "cu_seqlens": cu_seqlens, "row_ids": row_ids, "stay": stay}
    for name, tensor in tensors.items():
        if not tensor.is_cpu:
            raise ValueError(f"{name} is on {tensor.device}, expected cpu")
    return tuple(tensor.contiguous() for tensor in tensors.values())
