"""The field's criteria for heads that score rows. Text: "entropy:0.3", "patience:3,0.1", "confidence:0.9,1.2/1/0.8"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import ConfigError
from ..ops.rule import Clause
from .base import CRITERIA as CRITERIA
from .base import MULTI, REGRESSION, SINGLE, Outputs, register
from .data import Binding, DataCriterion, Numbers
from .signals import signal

Clauses = tuple[Clause, ...]


@register
@dataclass(frozen=True)
class Entropy(DataCriterion):
    """Leave where H(p) = -sum p ln p < threshold (natural logarithm, not normalised; p = softmax(logits)).

    The criterion of Past-Future, DeeBERT, BERxiT and ElasticBERT, but with p ln p = 0 at p = 0. Their code gives nan
    there, so that the surest rows of all never leave.
    """

    name = "entropy"
    threshold: Numbers

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("entropy", "<", at.threshold),)


@register
@dataclass(frozen=True)
class NormalisedEntropy(DataCriterion):
    """Leave where H(p) / ln C < threshold, which is between 0 and 1 whatever the number of labels C."""

    name = "normalised-entropy"
    threshold: Numbers

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("normalised_entropy", "<", at.threshold),)


@register
@dataclass(frozen=True)
class FastBERT(DataCriterion):
    """Leave where H(p) / ln C <= threshold, the knob "speed" of FastBERT (not strict, as in the authors' code)."""

    name = "fastbert"
    threshold: Numbers

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("normalised_entropy", "<=", at.threshold),)


@dataclass(frozen=True)
class _Tempered(DataCriterion):
    example = 0.9
    threshold: Numbers
    temperature: Numbers = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.min(self.temperature) <= 0:
            raise ConfigError(f"the temperature of {self.name} is {np.min(self.temperature)}; it must be above 0")


@register
@dataclass(frozen=True)
class Confidence(_Tempered):
    """Leave where max softmax(logits / temperature) >= threshold. Temperatures may be given per exit (RightTool)."""

    name = "confidence"

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("confidence", ">=", at.threshold, temperature=at(self.temperature)),)


@register
@dataclass(frozen=True)
class CascadeBERT(_Tempered):
    """Leave where max softmax(logits / temperature) > threshold (CascadeBERT; strict, as in the authors' code)."""

    name = "cascadebert"

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("confidence", ">", at.threshold, temperature=at(self.temperature)),)


@register
@dataclass(frozen=True)
class BinaryConfidence(_Tempered):
    """Leave where every label is sure: max(q, 1 - q) >= threshold for all q = sigmoid(logit / temperature).

    For models whose labels are given or not each by itself, one label too.
    """

    name = "binary-confidence"
    problem_types = (MULTI,)
    min_labels = 1

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("binary_confidence", ">=", at.threshold, temperature=at(self.temperature)),)


@register
@dataclass(frozen=True)
class Margin(DataCriterion):
    """Leave where the largest probability is at least `threshold` above the second largest."""

    name = "margin"
    threshold: Numbers

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("margin", ">=", at.threshold),)


@register
@dataclass(frozen=True)
class Energy(_Tempered):
    """Leave where -T ln sum exp(logits / T) < threshold, T the temperature (COSEE)."""

    name = "energy"
    example = -5.0

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("energy", "<", at.threshold, temperature=at(self.temperature)),)


@register
@dataclass(frozen=True)
class Patience(DataCriterion):
    """Leave once `threshold` consecutive exits gave the label of the exit before them (PABEE, section 3.2).

    So the earliest exit is exit `threshold` + 1. The answer is that of the exit where the row leaves. For regression,
    `tolerance` replaces equal labels: |score - score of the exit before| < tolerance.
    """

    name = "patience"
    example = 3
    threshold: int
    tolerance: float | None = None

    def misfit(self, outputs: Outputs) -> str | None:
        if outputs.problem_type == REGRESSION and self.tolerance is None:
            return "makes no sense for problem_type 'regression' without a tolerance: 'patience:3,0.1'"
        if outputs.problem_type != REGRESSION and self.tolerance is not None:
            return f"makes no sense for problem_type {outputs.problem_type!r}: a tolerance is for scores (regression)"
        return None if outputs.problem_type == REGRESSION and not outputs.tags else super().misfit(outputs)

    def clauses(self, at: Binding) -> Clauses:
        if self.tolerance is None:
            return (Clause("label_repeats", ">=", at(1), "running", times=at.threshold),)
        return (Clause("change", "<", at(self.tolerance), "running", times=at.threshold),)


@dataclass(frozen=True)
class _Window(DataCriterion):
    threshold: Numbers
    size: int = 8


@register
@dataclass(frozen=True)
class ELBERT(_Window):
    """Leave where H(p) / ln C < threshold, or p(label 0) was on one side of 1/2 by more than `margin` at `size` exits.

    ELBERT's two stages with window rule "bias_1", the default of its README. The window reads label 0 whatever the
    number of labels is, as the authors' code does. It lets rows leave at any threshold.
    """

    name = "elbert"
    margin: float = 0.0

    def clauses(self, at: Binding) -> Clauses:
        window = Clause("label_0", ">", at(self.margin), "side", size=self.size)
        return (Clause("normalised_entropy", "<", at.threshold), window)


@register
@dataclass(frozen=True)
class ELBERTTrend(_Window):
    """`ELBERT` with window rule "bias_2": p(label 0) began more than `margin` off 1/2 and never moved back to 1/2."""

    name = "elbert-trend"
    margin: float = 0.0

    def clauses(self, at: Binding) -> Clauses:
        window = Clause("label_0", ">", at(self.margin), "trend", size=self.size)
        return (Clause("normalised_entropy", "<", at.threshold), window)


@register
@dataclass(frozen=True)
class ELBERTRange(_Window):
    """`ELBERT` with window rule "bias_3": p(label 0) stayed on one side of 1/2, and within a range of `spread`."""

    name = "elbert-range"
    spread: float = 0.1

    def clauses(self, at: Binding) -> Clauses:
        window = Clause("label_0", "<=", at(self.spread), "range", size=self.size)
        return (Clause("normalised_entropy", "<", at.threshold), window)


@register
@dataclass(frozen=True)
class Voting(DataCriterion):
    """Leave at exit l where (largest number of votes for one label so far) / l^power > threshold (arXiv 2105.13792).

    l counts the tested exits. Each votes for its label.
    """

    name = "voting"
    example = 1.0
    threshold: Numbers
    power: float = 0.5

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("label", ">", at.threshold * at.exits ** np.float32(self.power), "votes"),)


@register
@dataclass(frozen=True)
class Learned(DataCriterion):
    """Leave where the score that the head adds, how likely its answer is wrong, is < threshold (BERxiT's LTE)."""

    name = "learned"
    threshold: Numbers
    problem_types = (SINGLE, REGRESSION)
    min_labels = 1
    learned = True

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("learned", "<", at.threshold),)


@register
@dataclass(frozen=True)
class PCEE(DataCriterion):
    """Leave once the entropy was < threshold at `times` consecutive exits (PCEE-BERT)."""

    name = "pcee"
    threshold: Numbers
    times: int = 2

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("entropy", "<", at.threshold, "running", times=at(self.times)),)


@register
@dataclass(frozen=True)
class BEEM(DataCriterion):
    """Leave where the confidences of the latest consecutive exits that agree on the label add up to >= threshold.

    Each is multiplied by the weight of its exit (BEEM, arXiv 2502.00745): one for all exits, or one per exit, such as
    its accuracy.
    """

    name = "beem"
    example = 1.8
    threshold: Numbers
    weights: Numbers = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.min(self.weights) < 0:
            raise ConfigError(f"a weight of beem is {np.min(self.weights)}; it must be at least 0")

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("confidence", ">=", at.threshold, "sum", times=at(self.weights)),)


def entropy(logits: Tensor) -> Tensor:
    """-sum p ln p of p = softmax(logits): [rows, labels] -> float32 [rows], in [0, ln labels]; 0 where one p is 1."""
    return signal("entropy", logits)
