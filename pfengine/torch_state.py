"""Isolates our computations from what the surrounding program has set in torch.

`torch.set_default_device`, `with torch.device(...)`, autocast, grad mode and modes that intercept torch's functions all
change what an operation gives. The default dtype cannot be switched off here, so every allocation states its dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run with torch's defaults and in inference mode, in this thread. The program's settings are restored at the end.

    A context manager or a decorator. Do not put it around a `yield`, during which the caller's code runs.
    """
    with (
        torch._C.DisableTorchFunction(),  # a default device is such a function too
        torch._C._DisableTorchDispatch(),
        torch._C._DisableAutocast(),
        torch.inference_mode(),
    ):
        yield
