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

PREFIX = "exit_head."  # of every head tensor's key in a checkpoint
HeadState = tuple[Tensor, ...]  # every tensor leads with rows, so that it compacts with them


class OwnTensors(Mapping[str, Tensor]):
    """The head's tensors without their prefix, read when they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[PREFIX + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(PREFIX) for key in self.tensors if key.startswith(PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Scores(NamedTuple):
    """What a head says of each row after a layer."""

    logits: Tensor  # float32 [rows, labels]; of a tag head [tokens, labels]
    learned: Tensor | None = None  # float32 [rows]: a score of its own, for criteria that read one


class ExitHead(ABC):
    """Reads layer after layer and answers with scores where it is asked to.

    tags: does it score every token rather than every row? renormalises: of a tag head, do tokens that have left go
    through each later layer's output norm? learned: does it add a score of its own, about whether an answer is right?
    """

    tags: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    renormalises: bool = False

    def reads(self, layer: int) -> Reads:
        """What it reads of layer `layer`: each row's first token, the mean of the row's tokens, or all tokens."""
        return "first"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        """What is wrong with the `head` object of pfengine.json, one sentence a fault."""
        return [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type"})]

    @staticmethod
    @abstractmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        """Every tensor of the head with its shape."""

    @abstractmethod
    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Prepare the weights once for an op set; dtype: of the large products, logits are always float32."""

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        """For each layer what `OpSet.prepare_model` takes; None where a step is more than an op `exit`."""
        return None

    @abstractmethod
    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        """Read layer `layer` (1-based) of all rows that are left.

        x: what `reads(layer)` says, [rows, H], or [tokens, H] for all tokens; cu_seqlens: int32 [rows + 1], row r has
        cu_seqlens[r] to cu_seqlens[r + 1] of x. state: what the previous layer's call returned, None before layer 1.
        Returns the scores where `answer`, else None, and the new state. Must be called for every layer in turn.
        """
