"""The only module that touches pfengine._C, the compiled extension; the engine runs without it, on torch."""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch  # before _C, so that both share torch's OpenMP
from torch import Tensor

_C: ModuleType | None
try:
    from . import _C

    _REASON = ""
except ImportError as error:
    _C = None
    _REASON = str(error)

log = logging.getLogger("pfengine")
Compacted = tuple[Tensor, Tensor, Tensor]  # tokens, cu_seqlens, row_ids


def has_cpu() -> bool:
    """Is the CPU code there?"""
    return _C is not None


@functools.cache
def has_cuda() -> bool:
    """Is the CUDA code there, and a GPU to run it?"""
    return _C is not None and _C.has_cuda and _C.cuda_device_count()[0] > 0


def status() -> str:
    """What is built, what is not and why, in one line."""
    if _C is None:
        return f"pfengine._C is not there ({_REASON})"
    if not _C.has_cuda:
        return "pfengine._C with CPU code"
    devices, reason = _C.cuda_device_count()
    return f"pfengine._C with CPU and CUDA code, {devices} GPUs" + (f" ({reason})" if reason else "")


@functools.cache
def warn_once() -> None:
    """Say, once a process, what is lacking where _C is not there, and what that costs."""
    if _C is None:
        log.warning(
            "pfengine._C is not there (%s): batches are compacted by torch, a few times slower than by _C; "
            "install again with a C++ compiler on the PATH",
            _REASON,
        )


def compact(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> Compacted:
    """The rows of a ragged batch where `stay` is true, moved together, in order; CPU tensors.

    tokens: [T, ...], any dtype; cu_seqlens: int32 [R + 1], ends with T; row_ids: int64 [R]; stay: bool [R].
    Raises ValueError where these do not fit each other.
    """
    tokens, cu_seqlens, row_ids, stay = _checked(tokens, cu_seqlens, row_ids, stay, "cpu")
    assert _C is not None
    rows = row_ids.shape[0]
    if int(cu_seqlens[-1]) != tokens.shape[0]:
        raise ValueError(f"cu_seqlens ends with {int(cu_seqlens[-1])}, but there are {tokens.shape[0]} tokens")
    kept_rows, kept_tokens = _C.count_staying(cu_seqlens.data_ptr(), stay.data_ptr(), rows)
    out = _like(tokens, cu_seqlens, row_ids, kept_rows, kept_tokens)
    _C.compact(
        tokens.data_ptr(), _width(tokens), cu_seqlens.data_ptr(), row_ids.data_ptr(), stay.data_ptr(), rows,
        *(tensor.data_ptr() for tensor in out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def compact_cuda(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> Compacted:
    """`compact` for CUDA tensors; waits for the GPU once, to size its result."""
    out, counts = compact_cuda_async(tokens, cu_seqlens, row_ids, stay)
    rows, kept = counts.tolist()
    return out[0][:kept], out[1][: rows + 1], out[2][:rows]


def compact_cuda_async(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> tuple[Compacted, Tensor]:
    """`compact` for CUDA tensors without waiting: results in buffers of the input's size, and counts int32 [2].

    counts, on the device, holds how many rows and tokens of the buffers are valid.
    """
    tokens, cu_seqlens, row_ids, stay = _checked(tokens, cu_seqlens, row_ids, stay, "cuda")
    assert _C is not None
    rows = row_ids.shape[0]
    out = _like(tokens, cu_seqlens, row_ids, rows, tokens.shape[0])
    target, counts = cu_seqlens.new_empty(rows), cu_seqlens.new_empty(2)
    with torch.cuda.device(tokens.device):
        _C.compact_cuda(
            tokens.data_ptr(), _width(tokens), cu_seqlens.data_ptr(), row_ids.data_ptr(), stay.data_ptr(), rows,
            *(tensor.data_ptr() for tensor in out), target.data_ptr(), counts.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
    return out, counts


def _like(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, rows: int, kept: int) -> Compacted:
    return tokens.new_empty((kept, *tokens.shape[1:])), cu_seqlens.new_empty(rows + 1), row_ids.new_empty(rows)


def _width(tokens: Tensor) -> int:
    """Bytes of one token."""
    return tokens.element_size() * (tokens[0].numel() if tokens.shape[0] else 0)


def _checked(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor, device: str) -> tuple[Tensor, ...]:
    rows = row_ids.shape[0]
    for name, tensor, dtype, shape in (
        ("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        ("row_ids", row_ids, torch.int64, (rows,)),
        ("stay", stay, torch.bool, (rows,)),
    ):
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; it must be {dtype} {list(shape)}")
    for name, tensor in (("tokens", tokens), ("cu_seqlens", cu_seqlens), ("row_ids", row_ids), ("stay", stay)):
        if tensor.device.type != device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {device}")
    if tokens.dim() == 0:
        raise ValueError("tokens is a scalar; it must be [tokens, ...]")
    return tokens.contiguous(), cu_seqlens.contiguous(), row_ids.contiguous(), stay.contiguous()
