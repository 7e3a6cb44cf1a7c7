"""Calls a user's criterion such that it decides who leaves and can change nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..torch_state import on_one_thread


def checked(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """A user's criterion whose results are checked: a wrong one raises ConfigError.

    The criterion may keep and change its arguments. It runs as the engine does: in inference mode, without the caller's
    autocast, default device or torch modes; and on one thread, because its operations are small.
    """
    return functools.partial(_call, criterion)


def _call(criterion: Callable[..., Any], layer: int, logits: Tensor, state: Any, row_ids: Tensor) -> tuple[Tensor, Any]:
    try:
        with on_one_thread():
            given = criterion(layer, logits, state, row_ids)
    except Exception as error:
        error.add_note(f"raised by the criterion {_name(criterion)} after layer {layer}")
        raise
    rows, device = row_ids.shape[0], row_ids.device
    if not isinstance(given, tuple) or len(given) != 2:
        raise _wrong(criterion, layer, _kind(given), f"(leave, state), where leave is bool [{rows}]")
    leave, state = given
    fits = isinstance(leave, Tensor) and leave.dtype is torch.bool and leave.shape == (rows,)
    if not fits or leave.device != device or leave.layout is not torch.strided:
        raise _wrong(criterion, layer, _kind(leave), f"bool [{rows}] on {device}, one per row, as a torch tensor")
    for part in _parts(state):
        fits = isinstance(part, Tensor) and part.dim() > 0 and part.shape[0] == rows
        if not fits or part.device != device or part.layout is not torch.strided:
            what = f"None, or tensors that lead with the {rows} rows, on {device}, in tuples"
            raise _wrong(criterion, layer, f"a state with {_kind(part)}", f"as state {what}")
    return leave, state


def _parts(state: Any) -> list[Any]:
    if isinstance(state, tuple):
        return [part for value in state for part in _parts(value)]
    return [] if state is None else [state]


def _wrong(criterion: Any, layer: int, got: str, wanted: str) -> ConfigError:
    return ConfigError(f"the criterion {_name(criterion)} gave {got} after layer {layer}; it must give {wanted}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _name(criterion: Any) -> str:
    return str(getattr(criterion, "__name__", type(criterion).__name__))
