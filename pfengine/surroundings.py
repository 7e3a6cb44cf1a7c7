"""The program around us may have set things in torch; our computations are kept from them here.

`torch.set_default_device`, `with torch.device(...)`, autocast, grad mode and modes that intercept torch's functions all
change what an operation gives. Default dtypes cannot be switched off: every allocation says its dtype, and its device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Torch as it is when nobody has set anything, in inference mode; for this thread, and as it was before at the end.

    A context or a decorator; not around a `yield` of ours, where the caller's code runs.
    """
    with (
        torch._C.DisableTorchFunction(),  # default devices are such functions too
        torch._C._DisableTorchDispatch(),
        torch._C._DisableAutocast(),
        torch.inference_mode(),
    ):
        yield
