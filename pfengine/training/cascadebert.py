"""CascadeBERT (Li et al., Findings of EMNLP 2021): complete models of several depths, trained for a cascade."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade_manifest import CascadeManifest
from ..cascade_saving import Part, fill_cascade
from ..config import BackboneConfig
from ..convert import cascadebert
from ..errors import ConfigError
from ..manifest import Manifest
from .freezing import Freezing
from .losses import exit_loss
from .options import COUNT, NOT_NEGATIVE, Limits, Option
from .phases import Phase
from .plain import FullModel
from .pretrained import encoder_config, read_encoder
from .system import System

FOLDS = Limits("an integer from 2 to 16", lambda v: 2 <= v <= 16, whole=True)
OPTIONS = {
    "depths": Option("Layers of each model, rising; without: 2 and all of the encoder's.", COUNT, many=True),
    "margin": Option("How much surer the first model is to be of easy rows.", NOT_NEGATIVE, default=0.5),
    "margin_weight": Option("Weight of that part of the loss.", NOT_NEGATIVE, default=0.5),
    "folds": Option("Judges that say which rows are easy, each trained on the folds of the others.", FOLDS, default=2),
}
JUDGES = Phase("the judges of difficulty", lambda name: name.startswith("judges."))
MODELS = Phase("the models", lambda name: not name.startswith("judges."))


class CascadeModel(FullModel):
    """sum over models of CE + w DAR, where DAR is the difficulty-aware regularisation of the first model.

    Each model starts from the lowest layers of the pretrained encoder. DAR (section 3.3, as in the authors' code): for
    each easy row one hard row of the batch is drawn uniformly, with replacement; the mean over the pairs of
    max(0, margin - (c_easy - c_hard)), c the first model's largest probability; 0 where a batch has only one kind.

    A row is easy where a model that has not seen it gives the right label, and else hard. The authors' code reads this
    from a file. Here the training rows are divided into `folds`, by their tokens, and first a judge is trained per fold
    on all rows of the other folds, as deep as the first model. Judges are not written to the checkpoint.
    """

    cascade = True

    def __init__(
        self,
        backbone: nn.Module | None,
        config: BackboneConfig,
        head: dict[str, Any],
        *,
        dropout: float = 0.0,
        freezing: Freezing | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = {name: option.default for name, option in OPTIONS.items()} | dict(options or {})
        assert backbone is not None  # it has no exits to attach
        if freezing is not None and freezing.kind != "none":
            raise ConfigError(f"freezing is {freezing.kind!r}; system 'cascadebert' trains whole models, give 'none'")
        depths = _depths(options["depths"], config.num_layers)
        *earlier, (last, last_config) = [_encoder(depth, backbone, config, options) for depth in depths]
        super().__init__(last, last_config, head, dropout=dropout, options=options)
        self.earlier = nn.ModuleList(FullModel(part, own, head, dropout=dropout) for part, own in earlier)
        self.judges = nn.ModuleList(
            FullModel(*_encoder(depths[0], backbone, config, options), head, dropout=dropout)
            for _ in range(options["folds"] if options["margin_weight"] > 0 else 0)
        )
        self.exit_layers = tuple(itertools.accumulate(depths))
        self.phase = self.phases()[0]

    @property
    def models(self) -> tuple[FullModel, ...]:
        """In the order in which rows enter them."""
        return (*self.earlier, self)

    def phases(self) -> tuple[Phase, ...]:
        return (JUDGES, MODELS) if len(self.judges) else (MODELS,)

    def initialise(self, pooler: tuple[Tensor, Tensor]) -> None:
        """The poolers of models whose family has one in its encoder; others classify by a layer of their own."""
        for model in (*self.models, *self.judges):
            family = self.backbone_config.family
            if family.pooler.startswith(family.prefix):
                with torch.no_grad():
                    for kind, value in zip(("weight", "bias"), pooler, strict=True):
                        model.head_tensors()[f"{family.pooler}.{kind}"].copy_(value[-1])

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits of every model, [B, models, C], and with labels the loss of the present phase."""
        inputs = {name: value for name, value in inputs.items() if value.dim()}  # the Trainer also counts rows
        if self.training and self.phase is JUDGES and labels is not None:
            return {"loss": self._judging(labels, inputs)}
        logits = torch.stack([_answers(model, inputs) for model in self.models])
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["loss"] = exit_loss(logits, labels).sum()
            if len(self.judges):
                regularisation = self.regularisation(logits[0], self.hard(labels, inputs))
                out["loss"] = out["loss"] + self.options["margin_weight"] * regularisation
        return out

    def hard(self, labels: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Which rows their judges get wrong, bool [B]."""
        self.judges.eval()
        folds, wrong = self._folds(inputs), torch.zeros_like(labels, dtype=torch.bool)
        with torch.no_grad():
            for fold, judge in enumerate(self.judges):
                if (own := folds == fold).any():
                    answers = _answers(judge, {name: value[own] for name, value in inputs.items()})
                    wrong[own] = answers.argmax(-1) != labels[own]
        return wrong

    def regularisation(self, logits: Tensor, hard: Tensor) -> Tensor:
        """DAR of the first model's logits, [B, C]."""
        confidence = torch.softmax(logits, -1).amax(-1)
        easy, difficult = confidence[~hard], confidence[hard]
        if not len(easy) or not len(difficult):
            return logits.new_zeros(())
        return (self.options["margin"] - (easy - difficult[self.draw(len(difficult), len(easy))])).clamp(min=0).mean()

    def draw(self, hard: int, easy: int) -> Tensor:
        """For each easy row the number of a hard one."""
        return torch.randint(hard, (easy,), dtype=torch.int64, device="cpu").to(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def fill(self, stage: Path, manifest: Manifest, tokenizer: Mapping[str, bytes] | None) -> None:
        parts = []
        for model in self.models:
            own = replace(manifest, criterion="never", exit_layers=(model.backbone_config.num_layers,))
            tensors = FullModel.checkpoint_tensors(model)
            parts.append(Part(model.backbone_config.raw, own, tensors, tokenizer))
        cascade = CascadeManifest(len(parts), manifest.system, manifest.criterion, training=manifest.training)
        fill_cascade(stage, cascade, parts)

    def _judging(self, labels: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The sum of the judges' losses, each over the rows of the other folds."""
        folds, losses = self._folds(inputs), []
        for fold, judge in enumerate(self.judges):
            others = folds != fold
            if others.any():
                answers = _answers(judge, {name: value[others] for name, value in inputs.items()})
                losses.append(exit_loss(answers[None], labels[others])[0])
        return torch.stack(losses).sum()

    def _folds(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The fold of each row, int64 [B]: the same for the same tokens, whatever else is in the batch."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        places = torch.arange(1, ids.shape[1] + 1, dtype=torch.int64, device=ids.device)
        mixed = (ids * mask * (places * 2654435761 % 4294967291)).sum(1)
        return (mixed >> 16) % len(self.judges)


def _answers(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a full model, float32 [B, C]."""
    states, bounds = model.read_layers(dict(inputs))
    with torch.autocast(states[0].device.type, enabled=False):
        (scores,) = model.scores([state.float() for state in states], bounds)
        logits: Tensor = scores.logits
        return logits


def _depths(given: tuple[int, ...] | None, most: int) -> tuple[int, ...]:
    depths = (2, most) if given is None else given
    if len(depths) < 2 or list(depths) != sorted(set(depths)) or depths[-1] > most:
        raise ConfigError(
            f"depths is {depths!r}; it must be two or more rising numbers, at most {most}, the layers of the encoder"
        )
    return depths


def _encoder(
    depth: int, backbone: nn.Module, config: BackboneConfig, options: Mapping[str, Any]
) -> tuple[nn.Module, BackboneConfig]:
    """The lowest layers of the pretrained encoder, and their config."""
    if depth == config.num_layers:
        return backbone, config
    source = Path(options["model"])
    own = encoder_config(source, config.labels, depth)
    return read_encoder(source, own).backbone, own


SYSTEMS = (
    System(
        "cascadebert",
        "complete models of several depths in a cascade",
        {"type": "classifier"},
        CascadeModel,
        own=OPTIONS,
        criterion="cascadebert",
        regression=None,
        converter=cascadebert,
    ),
)
