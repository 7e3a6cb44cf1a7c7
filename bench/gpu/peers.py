"""Who else classifies the rows: transformers, as it is and compiled, in padded batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines import FP32_TOLERANCE, TOLERANCE
from ..rows import Row, fixed_batches, padded
from .knobs import DRY, SIZES
from .work import path

OURS, EAGER, RAGGED = "pfengine", "transformers sdpa", "ragged torch, eager"
AUTOTUNED, OVERHEAD = "torch.compile max-autotune-no-cudagraphs", "torch.compile reduce-overhead"
COMPILED = (OVERHEAD, AUTOTUNED)  # the one that compiles faster first
Forward = Callable[[dict[str, Tensor]], Tensor]  # input_ids and so on, int64 [R, longest] -> logits [R, C]


@functools.cache
def transformers_model(hidden: int, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        path(hidden, "classifier"),
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval().to(device)


def eager(hidden: int, device: torch.device, dtype: torch.dtype = SIZES.dtype) -> Forward:
    model = transformers_model(hidden, dtype, device)
    return lambda inputs: model(**inputs).logits


def compiled(name: str, hidden: int, device: torch.device, shapes: int) -> Forward:
    """shapes: how many sizes of batches it will see; for more than one it is compiled for any. Slow at the first call.

    A dry run traces and compiles nothing.
    """
    torch._dynamo.reset()
    model = torch.compile(
        transformers_model(hidden, SIZES.dtype, device),
        mode=name.split()[-1],
        dynamic=shapes > 1,
        backend="eager" if DRY else "inductor",
    )

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return model(**inputs).logits

    return forward


class Padded:
    """All rows in padded batches, each cut by length: padding, copies both ways and a wait for each batch included."""

    def __init__(self, forward: Forward, rows: Sequence[Row], batch: int, device: torch.device) -> None:
        self.forward, self.rows, self.device = forward, rows, device
        self.batches = list(fixed_batches(rows, batch))

    def inputs(self, batch: Sequence[int]) -> dict[str, Tensor]:
        arrays = padded([self.rows[i] for i in batch])
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    @torch.no_grad()
    def __call__(self) -> np.ndarray:
        """Logits in the rows' order."""
        parts = [self.forward(self.inputs(batch)).float().numpy(force=True) for batch in self.batches]
        logits = np.concatenate(parts)
        out = np.empty_like(logits)
        out[np.concatenate(self.batches)] = logits
        return out

    def on_device(self) -> Callable[[], None]:
        """The same, inputs on the device and logits left there."""
        ready = [self.inputs(batch) for batch in self.batches]

        @torch.no_grad()
        def run() -> None:
            for inputs in ready:
                self.forward(inputs)

        return run


def expected(hidden: int, rows: Sequence[Row], batch: int, device: torch.device) -> np.ndarray:
    """Logits of transformers in fp32."""
    return Padded(eager(hidden, device, torch.float32), rows, batch, device)()


def check(name: str, logits: np.ndarray, wanted: np.ndarray) -> float:
    """How far logits are off, as a share of the range of those wanted. AssertionError where that is too far."""
    span = float(np.ptp(wanted))
    error = float(np.abs(logits - wanted).max())
    allowed = TOLERANCE["bf16"] * span if SIZES.dtype == torch.bfloat16 else FP32_TOLERANCE
    if not error <= allowed:  # nan too
        raise AssertionError(f"logits of {name} differ from transformers fp32 by {error:.2g}, more than {allowed:.2g}")
    return error / span
