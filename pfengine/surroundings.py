"""Shielding our computations from what the surrounding program has set in torch.

`torch.set_default_device`, `with torch.device(...)`, autocast, grad mode and modes that intercept torch's functions all
change what an operation gives. The default dtype cannot be shielded from here, so every allocation says its dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Torch with its defaults and in inference mode, in this thread; the program's settings are restored at the end.

    A context manager or a decorator. Not for use around a `yield`, during which the caller's code runs.
    """
    with (
        torch._C.DisableTorchFunction(),  # default devices work by such functions too
        torch._C._DisableTorchDispatch(),
        torch._C._DisableAutocast(),
        torch.inference_mode(),
    ):
        yield
