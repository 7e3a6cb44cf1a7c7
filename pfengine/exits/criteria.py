"""Criteria as pure tensor functions, and their text form: "entropy:0.3", "never", "replay:3,5,2"."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import extension
from ..errors import ConfigError, shown

CriterionState = Any  # None at first, then whatever the criterion returned: a tuple of tensors that lead with rows


class Criterion:
    """Base class; a user's own criterion may also be any callable with the signature of `__call__`.

    threshold: the one knob, None where there is none. problem_types: what kind of model it makes sense on.
    """

    threshold: float | None = None
    problem_types: tuple[str, ...] = ("single_label_classification", "multi_label_classification", "regression")

    def tests(self, layer: int) -> bool:
        """Does it look at the logits of this layer? Where it does not, the head does not compute them."""
        return True

    def in_numbers(self, row_ids: np.ndarray) -> tuple[float, np.ndarray | None] | None:
        """The rule for these rows as numbers, where it is as simple as that: an entropy, and a layer for each row.

        A row leaves behind the first tested layer where its entropy is below the one, or which is the other or later.
        """
        return None

    def with_threshold(self, threshold: float) -> Criterion:
        """The same criterion at another threshold; ConfigError where it has none or the value makes no sense."""
        raise ConfigError(f"criterion {self!r} takes no threshold")

    def candidates(self, logits: Tensor) -> list[float]:
        """Every threshold that makes a difference on rows with these logits [exits, rows, labels], slowest first."""
        raise ConfigError(f"criterion {self!r} cannot be calibrated")

    def grid(self, exits: int, labels: int) -> list[float]:
        """Thresholds fixed without looking at any row, slowest first: what a guarantee is tested over.

        At the first one nobody leaves early.
        """
        raise ConfigError(f"criterion {self!r} cannot be calibrated with a guarantee")

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        """Which rows leave after `layer` (1-based).

        logits: float32 [rows, labels]; row_ids: int64 [rows], each row's place in the caller's input; a criterion of
        the user's own is handed copies. state: None at first, then what the last call returned, for the rows that are
        left. Returns bool [rows] and the new state: None, or tensors that lead with rows, in tuples. Runs in inference
        mode, without the caller's autocast and default device. Must not read a value on the host, where it is to be
        one of ours.
        """
        raise TypeError(f"{type(self).__name__} must define __call__(layer, logits, state, row_ids)")


class Never(Criterion):
    """No row leaves early: the full model."""

    def tests(self, layer: int) -> bool:
        return False

    def in_numbers(self, row_ids: np.ndarray) -> tuple[float, np.ndarray | None] | None:
        return -math.inf, None

    def __repr__(self) -> str:
        return "never"


class Entropy(Criterion):
    """Leave where H(p) = -sum p ln p < threshold (natural logarithm, not normalised; p = softmax(logits)).

    As DeeBERT and Past-Future have it, with p ln p = 0 at p = 0: their code gives nan there, so that the surest rows
    of all never leave.
    """

    threshold: float
    problem_types = ("single_label_classification",)

    def __init__(self, threshold: float) -> None:
        self.threshold = number("the threshold of entropy", threshold)

    def with_threshold(self, threshold: float) -> Entropy:
        return Entropy(threshold)

    def in_numbers(self, row_ids: np.ndarray) -> tuple[float, np.ndarray | None] | None:
        return (self.threshold, None) if type(self) is Entropy else None  # a subclass may decide otherwise

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        return entropy(logits) < self.threshold, None

    def candidates(self, logits: Tensor) -> list[float]:
        values = entropy(logits[:-1]).unique()
        above = torch.nextafter(values, torch.full_like(values, math.inf))
        return [*values[:1].tolist(), *above.tolist()]

    def grid(self, exits: int, labels: int) -> list[float]:
        return [math.log(labels) * (k / 256) ** 3 for k in range(257)]

    def __repr__(self) -> str:
        return f"entropy:{self.threshold:g}"


class Patience(Criterion):
    """Leave once `threshold` layers in a row gave the label of the layer before them (PABEE, section 3.2).

    The first exit can be the one after layer threshold + 1; the answer is the present layer's.
    """

    threshold: int
    problem_types = ("single_label_classification",)

    def __init__(self, threshold: int) -> None:
        value = number("the threshold of patience", threshold)
        if value != int(value) or not 1 <= value < 2**31:
            raise ConfigError(f"the threshold of patience is {shown(threshold)}; it must be an integer >= 1")
        self.threshold = int(value)

    def with_threshold(self, threshold: float) -> Patience:
        return Patience(threshold)  # type: ignore[arg-type]

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        labels = logits.argmax(-1)
        count = torch.zeros_like(labels) if state is None else torch.where(labels == state[0], state[1] + 1, 0)
        return count >= self.threshold, (labels, count)

    def candidates(self, logits: Tensor) -> list[float]:
        return [float(patience) for patience in range(len(logits) - 1, 0, -1)]

    def grid(self, exits: int, labels: int) -> list[float]:
        return [float(patience) for patience in range(exits, 0, -1)]

    def __repr__(self) -> str:
        return f"patience:{self.threshold}"


class Replay(Criterion):
    """Leave at a layer given beforehand: row r at layers[r]. The full cost of every head is paid all the same."""

    def __init__(self, layers: Sequence[int] | np.ndarray | Tensor) -> None:
        """layers: exit layer of each row of the input, 1-based, [rows]."""
        try:
            given = layers.numpy(force=True) if isinstance(layers, Tensor) else np.asarray(layers)
        except (TypeError, ValueError, RuntimeError):
            given = np.empty((0, 0))
        whole = not given.size or given.dtype.kind in "iu"
        if given.ndim != 1 or not whole or (given < 1).any() or (given > np.iinfo(np.int64).max).any():
            raise ConfigError("replay takes one exit layer >= 1 for each row, as a flat list of integers")
        self.layers = given.astype(np.int64)
        self.rows = len(self.layers)

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        return torch.from_numpy(self.layers).to(row_ids.device).index_select(0, row_ids) <= layer, None

    def in_numbers(self, row_ids: np.ndarray) -> tuple[float, np.ndarray | None] | None:
        return (-math.inf, self.layers[row_ids]) if type(self) is Replay else None

    def __repr__(self) -> str:
        return "replay:" + ",".join(map(str, self.layers.tolist()))


def entropy(logits: Tensor) -> Tensor:
    """-sum p ln p of p = softmax(logits): [rows, labels] -> [rows], in [0, ln labels]; a saturated row gives 0."""
    if _in_c(logits):
        return extension.signal("entropy", logits)
    log_p = torch.log_softmax(logits.float(), dim=-1).clamp(min=-1e30)  # 0 times -inf would be nan
    return -(log_p.exp() * log_p).sum(-1)


def _in_c(logits: Tensor) -> bool:
    return logits.is_cpu and extension.has_cpu()


def number(name: str, value: Any) -> float:
    try:
        real = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except (OverflowError, ValueError):  # an integer of 400 digits
        real = math.nan
    if not math.isfinite(real):
        raise ConfigError(f"{name} is {shown(value)}; it must be a finite number")
    return real


CRITERIA: dict[str, type[Criterion]] = {"entropy": Entropy, "never": Never, "patience": Patience, "replay": Replay}
_EXAMPLES = {"entropy": "0.3", "patience": "3"}


def parse(text: str, threshold: float | None = None) -> Criterion:
    """The criterion a text such as "entropy:0.3" stands for; `threshold` replaces the one in the text.

    Raises ConfigError where the name is unknown, the threshold is missing or makes no sense.
    """
    name, _, argument = text.strip().partition(":")
    if name not in CRITERIA:
        raise ConfigError(f"criterion {shown(text)} is unknown; there are {', '.join(sorted(CRITERIA))}")
    if name == "never":
        if argument or threshold is not None:
            raise ConfigError("criterion 'never' takes no threshold")
        return Never()
    if name == "replay":
        if threshold is not None:
            raise ConfigError("criterion 'replay' takes no threshold; give one layer for each row, 'replay:3,5,2'")
        try:
            return Replay([int(layer) for layer in argument.split(",")])
        except ValueError:
            raise ConfigError(f"criterion {shown(text)}: give one layer for each row, 'replay:3,5,2'") from None
    if threshold is None:
        if not argument:
            example = _EXAMPLES[name]
            raise ConfigError(f"criterion {name!r} needs a threshold: '{name}:{example}', or threshold={example}")
        try:
            threshold = float(argument)
        except ValueError:
            threshold = None
        if threshold is None or "_" in argument:  # Python reads 0_3 as 3
            raise ConfigError(f"criterion {shown(text)}: {shown(argument)} is no number")
    return Patience(threshold) if name == "patience" else Entropy(threshold)  # type: ignore[arg-type]


def faults(criterion: str | None, threshold: float | None) -> list[str]:
    """What is wrong with a checkpoint's criterion; it may lack a threshold, which the caller gives then."""
    if criterion is None or criterion == "never":
        return [] if threshold is None else [f"'threshold' is {threshold}, but 'criterion' {criterion!r} takes none"]
    try:
        parse(criterion, 1.0 if criterion in _EXAMPLES and threshold is None else threshold)
    except ConfigError as error:
        return [f"'criterion': {error}"]
    return []
