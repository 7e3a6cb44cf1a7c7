"""Exit rules as data, from which a carrier decides by itself who leaves. `ops.decide` defines what they mean."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

Signal = Literal[
    "entropy", "normalised_entropy", "confidence", "margin", "energy", "binary_confidence", "label", "label_0",
    "label_repeats", "change", "learned", "layer",
]  # fmt: skip
Comparison = Literal["<", "<=", ">", ">="]
Memory = Literal["none", "running", "votes", "sum", "side", "trend", "range"]

SIGNALS: tuple[Signal, ...] = Signal.__args__  # type: ignore[attr-defined]
COMPARISONS: tuple[Comparison, ...] = Comparison.__args__  # type: ignore[attr-defined]
MEMORIES: tuple[Memory, ...] = Memory.__args__  # type: ignore[attr-defined]
WINDOWS = ("side", "trend", "range")  # memories that keep the last `size` values


def values(number: float) -> np.ndarray:
    """One number for all layers and slots, in the form of a clause's numbers: float32 [1, 1]."""
    return np.full((1, 1), number, np.float32)


class Clause(NamedTuple):
    """One reason to leave: a signal, what a memory of earlier exits makes of it, and a comparison with a threshold.

    Numbers are float32 [1 or n, 1 or P]: along the first dimension one for all layers or one per layer (index i - 1 is
    layer i), along the second one for all slots or one per slot of the answers. Comparisons are in float32, and none
    with nan is true.
    """

    signal: Signal
    comparison: Comparison
    threshold: np.ndarray  # float32 [1 or n, 1 or P]
    memory: Memory = "none"
    times: np.ndarray = values(1)  # "running": at so many consecutive exits; float32 [1 or n, 1 or P]. "sum": the
    # weight of this exit's signal; float32 [1 or n, 1]
    size: int = 0  # "side", "trend", "range": how many exits the window holds
    temperature: np.ndarray = values(1)  # logits are divided by it before the signal is computed; float32 [1 or n, 1]

    def width(self, labels: int) -> int:
        """How many numbers a row carries from exit to exit for this clause."""
        own = {"label_repeats": 1, "change": labels}.get(self.signal, 0)
        return own + {"none": 0, "running": 1, "votes": labels, "sum": 2}.get(self.memory, self.size)


class TokenRule(NamedTuple):
    """How the signals of a row's tokens are read, where the head scores every token, or those that words begin with.

    With words, a token here is a word: tokens of no word play no part, and a word is frozen with all its pieces.
    """

    unit: Literal["row", "token"]  # what leaves: whole rows, or each token by itself
    pool: Literal["max", "mean"] = "max"  # unit "row": the largest signal of the row's tokens, or their mean
    window: int = 1  # unit "token": the largest signal of so many tokens, an odd number, this one in the middle
    freezes: bool = False  # unit "token": is a token that has left frozen? Otherwise it is updated like all others

    def check(self, clauses: tuple[Clause, ...]) -> None:
        """Raise ValueError where its parts do not go together, or not with these clauses."""
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window must be odd, with the token in its middle; it is {self.window}")
        if self.unit == "token" and self.pool != "max":
            raise ValueError("pool must be 'max' for the unit 'token'")
        if self.unit == "row" and (self.window > 1 or self.freezes):
            raise ValueError("window must be 1 and freezes false for the unit 'row'")
        if self.unit == "row" and any(
            clause.signal in ("label_repeats", "change") or clause.memory in ("votes", "sum") for clause in clauses
        ):
            raise ValueError(
                "a clause reads labels (label_repeats, change, votes or sum), but the rule pools a row's tokens, so "
                "that there is no label of the row"
            )


class ExitRule(NamedTuple):
    """When rows (or tokens) leave: at the first tested exit where any clause holds, otherwise after the last layer."""

    tested: bytes  # [n]: is the exit after layer i tested? Index i - 1, 0 or 1
    clauses: tuple[Clause, ...] = ()
    tokens: TokenRule | None = None

    def width(self, labels: int) -> int:
        """How many numbers a row (or token) carries from exit to exit; they are nan before the first."""
        return sum(clause.width(labels) for clause in self.clauses)

    @property
    def layout(self) -> tuple[Any, ...]:
        """What those numbers stand for. A rule can take over the numbers of another where their layouts are equal."""
        by_row = self.tokens is not None and self.tokens.unit == "row"
        return by_row, *((clause.signal, clause.memory, clause.size) for clause in self.clauses)

    def check(self, layers: int, slots: int, tags: bool, learned: bool) -> None:
        """Raise ValueError where it does not fit a model of so many layers, or answers of so many slots.

        tags: does the model's head score every token? learned: does it add a learned score?
        """
        if len(self.tested) != layers:
            raise ValueError(f"tested has {len(self.tested)} numbers, expected {layers}, one per layer")
        if self.tokens is not None and not tags:
            raise ValueError("the rule reads tokens, but the head does not score them")
        if self.tokens is None and tags and self.clauses:
            raise ValueError("the head scores every token, and the rule does not say how they are read")
        if self.tokens is not None:
            self.tokens.check(self.clauses)
        for clause in self.clauses:
            if clause.signal == "learned" and not learned:
                raise ValueError("the rule reads a learned score, which the head does not give")
            for numbers in (clause.threshold, clause.times, clause.temperature):
                if len(numbers) not in (1, layers):
                    raise ValueError(f"the rule has numbers for {len(numbers)} layers, expected 1 or {layers}")
                if numbers.shape[1] not in (1, slots):
                    raise ValueError(
                        f"the rule has numbers for {numbers.shape[1]} slots, expected 1 or the {slots} slots of the "
                        "answers"
                    )


def number_at(numbers: np.ndarray, layer: int, slots: np.ndarray) -> np.ndarray:
    """A clause's numbers at a layer (1-based) for slots, int64 [R]: float32 [R], or [1] where all are the same."""
    of_layer = numbers[min(layer, len(numbers)) - 1] if len(numbers) > 1 else numbers[0]
    return of_layer[slots] if len(of_layer) > 1 else of_layer
