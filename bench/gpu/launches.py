"""What a pass launches: noted on the meta device, or as it runs, so that each launch can be made again alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from pfengine.kernels import launch as launching
from pfengine.ops.cuda_lanes import LATE_TOKENS
from pfengine.ops.cuda_model import Bucket, Buffers, Plan, PreparedModel, run_segment

from .costs import Cost, Launched, Use, cost, name

WEIGHTS = ("weight", "bias", "learners", "projection", "gate", "gate_bias")


class Traced(NamedTuple):
    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    grid: tuple[int, ...]
    options: dict[str, Any]

    def again(self, arguments: dict[str, Any] | None = None) -> None:
        launching.launch(self.kernel, self.grid, arguments or self.arguments, self.constants, **self.options)


@contextlib.contextmanager
def traced() -> Iterator[list[Traced]]:
    """Launches with their grids, as they run; `launching.recording` runs none, and then no count would be right."""
    found: list[Traced] = []
    real = launching.launch

    def launch(kernel: Any, grid: Any, arguments: Any, constants: Any, **options: Any) -> None:
        if all(grid):
            found.append(Traced(kernel, arguments, constants, grid, options))
        real(kernel, grid, arguments, constants, **options)

    modules = [module for key, module in sys.modules.items() if key.startswith("pfengine.kernels.")]
    with contextlib.ExitStack() as patches:
        for module in modules:
            if module is not launching and getattr(module, "launch", None) is real:
                patches.enter_context(mock.patch.object(module, "launch", launch))
        yield found


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

    def noted(self) -> list[launching.Launch]:
        """What would be launched, on the meta device too."""
        with launching.recording() as launches:
            self.run()
        return list(launches)

    def traced(self) -> list[Traced]:
        with traced() as launches:
            self.run()
        return launches


def label(launch: Launched, use: Use) -> str:
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


def lines(launches: Sequence[Launched], use: Use, ceilings: Ceilings) -> list[Line]:
    """In the order of the first launch of each."""
    found: dict[str, Line] = {}
    for launch in launches:
        key, here = label(launch, use), cost(launch, use)
        line = found.get(key, Line(key, 0, Cost(0, 0), 0.0))
        total = Cost(line.cost.flops + here.flops, line.cost.bytes + here.bytes)
        found[key] = Line(key, line.launches + 1, total, line.floor_seconds + ceilings.seconds(here))
    return list(found.values())


def weight_bytes(launches: Sequence[Launched]) -> int:
    """Of matrices and vectors that launches read, each once."""
    return sum(
        launch.arguments[key].numel() * launch.arguments[key].element_size()
        for launch in launches
        for key in WEIGHTS
        if launch.arguments.get(key) is not None
    )


def signature(launch: Launched) -> str:
    """The same for launches that take the same time: one kernel on the same shapes, whatever the numbers."""
    arguments = {
        key: (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value
        for key, value in launch.arguments.items()
        if key != "layer" and not isinstance(value, float)
    }
    return repr((name(launch), arguments, launch.constants))
