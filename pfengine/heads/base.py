"""The interface of an exit head."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import OpSet, Reads
from ..registry import Registry

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

    logits: Tensor  # float32 [rows, labels]; of a tag head [words, labels]
    learned: Tensor | None = None  # float32 [rows]: an additional score, for criteria that read one


class ExitHead(ABC):
    """Reads the states of layer after layer, and gives scores where it is asked for them.

    name: the `type` of the `head` object in pfengine.json, once `register` has put the class into the table.
    tags: does it score every word, by its first piece, rather than every row? Of a tag head, for words that have left:
    renormalises: does each later layer's output norm apply to their frozen states? freezes_first_pieces: is only the
    first piece of each frozen, and not all of them?
    """

    name: ClassVar[str]
    tags: ClassVar[bool] = False
    renormalises: bool = False
    freezes_first_pieces: bool = False

    def reads(self, layer: int) -> Reads:
        """What it reads after layer `layer`: each row's first token, a mean of its tokens, or all tokens."""
        return "first"

    def queries(self, layer: int) -> Any:
        """What `OpSet.prepare_queries` made, for layers after which it reads "query"."""
        raise NotImplementedError(f"{type(self).__name__} reads by queries after layer {layer} and has none")

    def read(self, ops: OpSet, layer: int, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """What `step` is to get of the states of all tokens after `layer`: [T, H] -> [R, H], or [T, H] for all."""
        match self.reads(layer):
            case "first":
                return x.index_select(0, cu_seqlens[:-1])
            case "mean":
                return ops.mean(x, cu_seqlens)
            case "query":
                return ops.query_mean(x, cu_seqlens, self.queries(layer))
            case "all":
                return x

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        """What is wrong with the `head` object of pfengine.json, one sentence per fault."""
        return [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type"})]

    @staticmethod
    def misfits(config: BackboneConfig, head: dict[str, Any]) -> list[str]:
        """Why a `head` object without faults does not fit this encoder, one sentence per reason."""
        return []

    @staticmethod
    def learns(head: dict[str, Any]) -> bool:
        """Does it add a score of its own, which says how likely an answer is wrong (`Scores.learned`)?"""
        return False

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        """The layers after which it can answer, 1-based and rising; the last is the model's last layer."""
        return tuple(range(1, config.num_layers + 1))

    @staticmethod
    @abstractmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        """Shapes of all tensors of the head, by key."""

    @classmethod
    def level(cls, config: BackboneConfig, head: dict[str, Any]) -> dict[str, Tensor]:
        """Biases, by key, with which every exit scores about 1 where its weights are small; {} where none are known."""
        key = f"{PREFIX}classifiers.bias"
        shape = cls.shapes(config, head).get(key)
        return {} if shape is None else {key: torch.ones(shape, dtype=torch.float32, device="cpu")}

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

        x: what `reads(layer)` says, [rows, H], or [tokens, H] for all tokens, of which a tag head gets the first piece
        of each word; cu_seqlens: int32 [rows + 1], row r has cu_seqlens[r] to cu_seqlens[r + 1] of x. state: what the
        previous layer's call returned, None before layer 1.
        Returns the scores where `answer`, else None, and the new state. Must be called for each layer in turn.
        """


HEADS: Registry[type[ExitHead]] = Registry("head")
"""Heads by name. Filled by `register`."""

Kind = TypeVar("Kind", bound=type[ExitHead])


def register(kind: Kind) -> Kind:
    """Class decorator: from now on heads of type `kind.name` in checkpoints and training are of this class.

    A class may be registered again under its own name, as happens when its module is reloaded. Raises ValueError for a
    name that another class has or that is not of small letters, digits, - and _, TypeError for what is no `ExitHead`
    or lacks methods.
    """
    if not (isinstance(kind, type) and issubclass(kind, ExitHead)):
        raise TypeError(f"{kind!r} is no subclass of ExitHead")
    if inspect.isabstract(kind):
        raise TypeError(f"{kind.__name__} must define {', '.join(sorted(kind.__abstractmethods__))}")
    if kind.tags and kind.learns is not ExitHead.learns:
        raise TypeError(f"{kind.__name__} scores tokens; only heads that score rows may add a learned score")
    HEADS.add(kind.__dict__.get("name"), kind)
    return kind
