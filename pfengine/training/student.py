"""A student of fewer layers, distilled from a full model on the task's own rows (BERT-PKD, Sun et al., EMNLP 2019)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reader
from ..config import BackboneConfig
from ..errors import ConfigError
from ..folder import Folder
from ..ops import Reads
from .losses import exit_loss
from .model import ExitModel
from .options import NOT_NEGATIVE, POSITIVE, SHARE, Option
from .plain import FullModel
from .pretrained import encoder_config, read_encoder
from .system import System

READS = ("first", "mean")
OPTIONS = {
    "teacher": Option("Checkpoint of the full model to learn from.", path=True),
    "soft": Option("Share of the loss that the teacher's answers have.", SHARE, default=0.5),
    "temperature": Option("Temperature of the answers in that share.", POSITIVE, default=5.0),
    "patient": Option("Weight of the distance between states.", NOT_NEGATIVE, default=100.0),
    "compared": Option("States it is of: of the first token, or the mean of a row's.", choices=READS, default="first"),
}
SAME = {"labels": "labels", "hidden_size": "hidden size", "vocab_size": "vocabulary size", "type_vocab_size": "types"}


class StudentModel(FullModel):
    """(1 - a) CE(labels) + a CE(teacher's answers, both at temperature T) + b PT (eq. 3, 4 and 8).

    PT (eq. 7, "PKD-skip"): squared distance of the states of the first tokens, each divided by its norm, between
    student layer i < k and teacher layer i n / k, rounded down, summed over layers and averaged over rows. The last
    layers are left to the answers. For regression the two first terms are squared errors. The options are `soft` a,
    `temperature` T and `patient` b. `compared` "mean" takes the mean of each row's tokens in the place of its first:
    in an encoder that was pre-trained with means, the first token says little in low layers.

    The teacher is any checkpoint of this package, at its full depth. A student starts from its lowest layers where it
    is also the run's `model`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        teacher = _teacher(self.options.get("teacher"), self.backbone_config)
        teacher.compared = self.options["compared"]
        self.teachers = (teacher,)  # a tuple: no part of the model

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        if labels is None or not self.training:
            return super().forward(labels, **inputs)
        self._calls.compared = []
        states, bounds = self.read_layers(inputs)
        own, self._calls.compared = self._calls.compared, None
        with torch.no_grad():
            theirs, answers = self.teachers[0].to(labels.device).states_and_answers(inputs)
        with torch.autocast(labels.device.type, enabled=False):
            own, theirs = ([state.float() for state in each] for each in (own, theirs))
            (scores,) = self.scores([state.float() for state in states], bounds)
            return {
                "logits": scores.logits[:, None],
                "loss": self.distilled(scores.logits, labels, answers, own, theirs),
            }

    def pass_on(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        compared: list[Tensor] | None = getattr(self._calls, "compared", None)
        if compared is not None:
            compared.append(self._read(hidden, self.options["compared"]))
        return hidden, hidden

    def distilled(
        self, logits: Tensor, labels: Tensor, answers: Tensor, own: list[Tensor], theirs: list[Tensor]
    ) -> Tensor:
        """The loss. logits, answers: [B, C], of the student and the teacher; own, theirs: [B, H] per layer."""
        share, temperature = self.options["soft"], self.options["temperature"]
        if logits.shape[1] == 1:
            soft = F.mse_loss(logits, answers)
        else:
            soft = F.cross_entropy(logits / temperature, torch.softmax(answers / temperature, -1))
        places = [layer * len(theirs) // len(own) for layer in range(1, len(own))]
        distances = [
            (F.normalize(own[i], dim=-1) - F.normalize(theirs[place - 1], dim=-1)).square().sum(-1).mean()
            for i, place in enumerate(places)
        ]
        hard = exit_loss(logits[None], labels)[0]
        return (1 - share) * hard + share * soft + self.options["patient"] * sum(distances, logits.new_zeros(()))


class Teacher(ExitModel):
    """A finished model, of which the last layer answers. compared: which states of its layers it gives."""

    compared: Reads = "first"

    def pass_on(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        self._calls.compared.append(self._read(hidden, self.compared))
        return hidden, hidden

    def states_and_answers(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """The compared states after each layer, [B, H], and the logits after the last, [B, C]."""
        self._calls.compared = []
        states, bounds = self.read_layers(inputs)
        with torch.autocast(states[0].device.type, enabled=False):
            (scores,) = self.scores([state.float() for state in states], bounds)
        return self._calls.compared, scores.logits


def _teacher(path: str | None, student: BackboneConfig) -> Teacher:
    """The checkpoint, checked against the student. ConfigError, or CheckpointError for the checkpoint itself."""
    if path is None:
        raise ConfigError("teacher is None; system 'student' needs the checkpoint of a full model to learn from")
    found = reader.read(Folder(path))
    for name, words in SAME.items():
        theirs, own = getattr(found.backbone, name), getattr(student, name)
        if theirs != own:
            raise ConfigError(f"teacher {path} has {words} {theirs!r}, and the student {own!r}; they must be the same")
    if found.backbone.num_layers < student.num_layers:
        more, fewer = student.num_layers, found.backbone.num_layers
        raise ConfigError(f"the student has {more} layers, more than its teacher {path}, {fewer}; give fewer as layers")
    config = encoder_config(Path(path), student.labels if len(student.labels) > 1 else (), None)
    teacher = Teacher(read_encoder(Path(path), config).backbone, config, found.manifest.head)
    teacher.load_head({key: found.tensors[key] for key in teacher.head_tensors()})
    teacher.exit_layers = (config.num_layers,)
    return teacher.eval().requires_grad_(False)


SYSTEMS = (
    System(
        "student",
        "the same, distilled from a full model of more layers",
        {"type": "classifier"},
        StudentModel,
        own=OPTIONS,
    ),
)
