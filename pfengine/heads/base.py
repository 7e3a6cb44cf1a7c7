"""The interface of an exit head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import OpSet, Reads

PREFIX = "exit_head."  # begins the key of every head tensor in a checkpoint
HeadState = tuple[Tensor, ...]  # the first dimension of every tensor is rows, so that they compact together


class OwnTensors(Mapping[str, Tensor]):
    """The head's tensors by key without the prefix. Each is read on access."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[PREFIX + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(PREFIX) for key in self.tensors if key.startswith(PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Scores(NamedTuple):
    """The scores of a head after a layer."""

    logits: Tensor  # float32 [rows, labels]; of a tag head [tokens, labels]
    learned: Tensor | None = None  # float32 [rows]: an additional score, for criteria that read one


class ExitHead(ABC):
    """Reads the states of layer after layer, and gives scores where it is asked for them.

    tags: does it score every token rather than every row? renormalises: for a tag head, does each later layer's output
    norm apply to tokens that have left? learned: does it add a score of its own that says how likely an answer is
    wrong?
    """

    tags: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    renormalises: bool = False

    def reads(self, layer: int) -> Reads:
        """What it reads after layer `layer`: each row's first token, the mean of its tokens, or all tokens."""
        return "first"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        """What is wrong with the `head` object of pfengine.json, one sentence per fault."""
        return [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type"})]

    @staticmethod
    @abstractmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        """Shapes of all tensors of the head, by key."""

    @abstractmethod
    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Prepare the weights once for an op set. dtype: of the large products; logits are always float32."""

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        """The exits for `OpSet.prepare_model`, one entry per layer; None where a step is more than an op `exit`."""
        return None

    @abstractmethod
    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        """Read the states after layer `layer` (1-based) of all rows that are left.

        x: what `reads(layer)` says, [rows, H], or [tokens, H] for all tokens; cu_seqlens: int32 [rows + 1], row r has
        cu_seqlens[r] to cu_seqlens[r + 1] of x. state: what the previous layer's call returned, None before layer 1.
        Returns the scores where `answer`, else None, and the new state. Must be called for each layer in turn.
        """
