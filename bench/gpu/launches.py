"""What a pass launches: noted on the meta device, or as it runs, so that each launch can be made again alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pfengine.kernels.launch import Launch, recording
from pfengine.ops.cuda_lanes import LATE_TOKENS
from pfengine.ops.cuda_model import Bucket, Buffers, Plan, PreparedModel, run_segment

from .costs import Cost, Use, cost, name

WEIGHTS = ("weight", "bias", "learners", "projection", "gate", "gate_bias")


class Pass:
    """A batch on its way through a model, in buffers exactly as large as it is."""

    def __init__(
        self,
        weights: PreparedModel,
        lengths: Sequence[int],
        tested: bytes,
        vocabulary: int = 2,
        late: bool | None = None,
    ) -> None:
        """tested, late: as in `Plan`; late None: as a lane would have it."""
        self.weights, self.use = weights, Use(tuple(lengths))
        if late is None:
            late = any(tested[:-1]) and sum(lengths) <= LATE_TOKENS
        self.plan = Plan(tested, replays=False, late=late)
        self.bucket = Bucket(len(lengths), sum(lengths), max(lengths))
        with torch.inference_mode():
            self.buffers = Buffers(weights, self.bucket.rows, self.bucket.tokens)
            if self.buffers.inbox.device.type != "meta":
                self._fill(vocabulary)

    def _fill(self, vocabulary: int) -> None:
        buffers, generator = self.buffers, np.random.default_rng(3)
        counts, threshold, _, bounds = buffers.inputs(buffers.inbox, buffers.rows)
        ids, positions, types = buffers.ids(buffers.inbox, self.bucket)
        lengths = self.use.lengths
        for to, values in (
            (counts, np.array([self.bucket.rows, self.bucket.tokens])),
            (bounds, np.cumsum([0, *lengths])),
            (ids, generator.integers(1, vocabulary, self.bucket.tokens)),
            (positions, np.concatenate([np.arange(length) for length in lengths])),
        ):
            to.copy_(torch.from_numpy(values))
        types.zero_()
        threshold.fill_(-torch.inf)  # nobody leaves

    @torch.inference_mode()
    def run(self) -> None:
        for segment in self.plan.segments():
            run_segment(self.weights, self.buffers, self.plan, segment, self.bucket)

    def noted(self, run: bool = False) -> list[Launch]:
        """What is launched; on the meta device too, where it does not run."""
        with recording(run) as launches:
            self.run()
        return launches


def label(launch: Launch, use: Use) -> str:
    """What a line of a table is about: the kernel, the shape of a product, what is fused with it."""
    kind, arguments, constants = name(launch), launch.arguments, launch.constants
    parts = [kind]
    if kind in ("linear", "thin_linear"):
        columns, inner = arguments["weight"].shape
        parts[0] += f" {columns} x {inner}"
        parts += [constants["ACTIVATION"]] if constants.get("ACTIVATION", "none") != "none" else []
        parts += ["+ add"] if arguments["add"] is not None else []
    of_tokens = kind in ("linear", "add_layer_norm", "attention")
    if of_tokens and len(arguments["out"]) == len(use.lengths) != sum(use.lengths):
        parts.append("first tokens")
    return ", ".join(parts)


class Line(NamedTuple):
    """Launches of a pass with the same label; cost: of all of them together."""

    label: str
    launches: int
    cost: Cost
    floor_seconds: float  # sum over the launches


class Ceilings(NamedTuple):
    flops: float  # a second, of a large matrix product
    bytes: float  # a second, read and written
    measured: bool

    def seconds(self, cost: Cost) -> float:
        return max(cost.flops / self.flops, cost.bytes / self.bytes)


def lines(launches: Sequence[Launch], use: Use, ceilings: Ceilings) -> list[Line]:
    """In the order of the first launch of each."""
    found: dict[str, Line] = {}
    for launch in launches:
        key, here = label(launch, use), cost(launch, use)
        line = found.get(key, Line(key, 0, Cost(0, 0), 0.0))
        total = Cost(line.cost.flops + here.flops, line.cost.bytes + here.bytes)
        found[key] = Line(key, line.launches + 1, total, line.floor_seconds + ceilings.seconds(here))
    return list(found.values())


def weight_bytes(launches: Sequence[Launch]) -> int:
    """Of matrices and vectors that launches read, each once."""
    return sum(
        launch.arguments[key].numel() * launch.arguments[key].element_size()
        for launch in launches
        for key in WEIGHTS
        if launch.arguments.get(key) is not None
    )


def signature(launch: Launch) -> str:
    """The same for launches that take the same time: one kernel on the same shapes, whatever the numbers."""
    arguments = {
        key: (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value
        for key, value in launch.arguments.items()
        if key != "layer" and not isinstance(value, float)
    }
    return repr((name(launch), arguments, launch.constants))
