"""SENTEE and TOKEE (Li et al., ACL 2021): taggers whose exits are trained jointly, then with words that leave early."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert import seqlab
from ..exits import TOKEEWindow
from ..exits.calibration import exits_taken
from ..heads import Scores
from ..ops import Reads
from .losses import depth_weighted
from .model import ExitModel
from .options import Option
from .phases import Phase
from .system import System

STAGE_1 = "stage_1."  # begins the names of the copy that decides who leaves
OPTIONS = {
    "frozen": Option(
        "State of a word that has left: kept, or renormalised by each later layer.",
        choices=("kept", "renormalised"),
        default="kept",
    ),
    "freezes": Option(
        "Which pieces of a word that has left keep their state: those of words, or first-pieces only.",
        choices=("words", "first-pieces"),
        default="words",
    ),
    "flooding": Option(
        "Whether self-sampling holds losses at those before it, as in the authors' code: off or on.",
        choices=("off", "on"),
        default="off",
    ),
}
AUTHORS = {"frozen": "renormalised", "flooding": "on"}  # in their README, and by default in their code
AUTHORS_OPTIONS = {name: option._replace(default=AUTHORS.get(name, option.default)) for name, option in OPTIONS.items()}


def _of_model(name: str) -> bool:
    return not name.startswith(STAGE_1)


JOINT, SELF_SAMPLING = Phase(trains=_of_model), Phase("self-sampling", trains=_of_model)
HEAD_RATE = 10
# The authors' choices. Of ten rows of a batch they let the words of three go through all layers, and take the smallest
# window or the largest threshold for two.
WINDOWS = tuple(range(3, 16, 2))
THRESHOLDS = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
FULL_DEPTH, EXTREME = 0.3, 0.2


class TagModel(ExitModel):
    """sum_i i CE_i / sum_i i over the exits i, where CE_i is the mean over all words of the batch.

    A word is read at its first piece. As in the authors' code classifiers learn at HEAD_RATE times the encoder's rate.

    `forward` takes, beside the encoder's inputs, `first_pieces` and `pieces` as `rows.Collator` gives them: int64
    [B, words], the place of each word's first piece and the number of its pieces, which is 0 for padding; labels are
    [B, words]. Logits are [W, exits, C] for the W words of the batch, row after row.
    """

    def forward(  # type: ignore[override]
        self, labels: Tensor | None = None, *, first_pieces: Tensor, pieces: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        self._calls.words = first_pieces, pieces
        return super().forward(None if labels is None else labels[pieces > 0], **inputs)

    def rates(self) -> dict[str, float]:
        rate = self.phase.learning_rate or self.options["learning_rate"]
        return {name: HEAD_RATE * rate for name, _ in self.named_parameters() if name.startswith("exit_head.")}

    def read_layers(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The hidden state of each word's first piece after every layer, [W, H], and the bounds of the rows' words."""
        states, _ = super().read_layers(inputs)
        _, pieces = self._calls.words
        return states, F.pad((pieces > 0).sum(1).cumsum(0), (1, 0)).to(torch.int32)

    def _read(self, hidden: Tensor, reads: Reads) -> Tensor:
        first, pieces = self._calls.words
        rows, words = (pieces > 0).nonzero(as_tuple=True)
        return hidden[rows, first[rows, words]]


class TOKEEModel(TagModel):
    """`TagModel`, and then self-sampling: words leave as the model of the first phase, frozen, would let them leave.

    Each row draws a window and a threshold. The pieces of a word that has left keep their states in all further layers,
    or, where the head's `frozen` is "renormalised", each later layer's output norm of their last sum. The loss is the
    same, over all words. With the option `flooding` it is sum_i i F_i / sum_i i, where F_i is the mean over words of
    |CE_i - CE_i of the first phase|, which is in the authors' code only. That code means to give words that have left
    no target, but a later branch of it computes the loss again with all targets, and that is the loss it trains on.
    """

    def __init__(self, backbone: nn.Module | None, config: Any, head: dict[str, Any], **options: Any) -> None:
        spare = copy.deepcopy(backbone)
        super().__init__(backbone, config, head, **options)
        self.floods = self.options.get("flooding") == "on"
        self.renormalises = head.get("frozen") == "renormalised"
        self.first_pieces_only = head.get("freezes") == "first-pieces"
        if backbone is None:
            return
        self.stage_1 = TagModel(spare, config, head)
        for key in sorted({key for layer in config.block_keys() for key in layer}):
            block = backbone.get_submodule(key.removeprefix(config.family.prefix).removesuffix("."))
            norm = block.get_submodule(config.family.block_parts["output_norm"])
            norm.register_forward_pre_hook(self._before_norm)
            block.register_forward_hook(self._after_block, prepend=True)

    def phases(self) -> tuple[Phase, ...]:
        return JOINT, SELF_SAMPLING

    def begin_phase(self) -> None:
        """The model that the first phase made is copied, to decide who leaves in the second."""
        if self.phase is SELF_SAMPLING:
            self.stage_1.backbone.load_state_dict(self.backbone.state_dict())  # type: ignore[union-attr]
            self.stage_1.load_head(self.head_tensors())

    def forward(  # type: ignore[override]
        self,
        labels: Tensor | None = None,
        *,
        first_pieces: Tensor,
        pieces: Tensor,
        exits: Tensor | None = None,
        before: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """As `TagModel.forward`. In training in the second phase words leave early, and there the loss may be flooded.

        exits: int64 [W], after which layer each word leaves; before: float32 [exits, W], its cross-entropies in the
        first phase. Both are drawn, and computed, where they are not given.
        """
        if self.training and self.phase is SELF_SAMPLING and exits is None:
            exits, before = self._sample(labels, first_pieces, pieces, inputs)
        self._calls.active = None if exits is None else self._active(exits, first_pieces, pieces, inputs["input_ids"])
        self._calls.before = before if self.floods else None
        try:
            return super().forward(labels, first_pieces=first_pieces, pieces=pieces, **inputs)
        finally:
            self._calls.active = self._calls.sums = None

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        before: Tensor | None = self._calls.before
        if before is None:
            return super().loss(scores, labels)
        return depth_weighted((word_losses(scores, labels) - before).abs().mean(1))

    def _sample(
        self, labels: Tensor | None, first_pieces: Tensor, pieces: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """What `forward` takes as exits and before."""
        self.stage_1.eval()
        with torch.no_grad():
            logits = self.stage_1(first_pieces=first_pieces, pieces=pieces, **inputs)["logits"].transpose(0, 1)
        bounds = F.pad((pieces > 0).sum(1).cumsum(0), (1, 0)).tolist()
        exits = torch.from_numpy(sample_exits(logits.float().cpu().numpy(), bounds, self.exit_layers)).to(pieces.device)
        if labels is None or not self.floods:
            return exits, None
        return exits, word_losses([Scores(each) for each in logits], labels[pieces > 0])

    def _active(self, exits: Tensor, first_pieces: Tensor, pieces: Tensor, ids: Tensor) -> Tensor:
        """bool [n, B, tokens, 1]: is the token updated in the layer? Those of no word always are."""
        last = torch.full(ids.shape, len(self.reads), dtype=torch.int64, device=ids.device)
        rows, words = (pieces > 0).nonzero(as_tuple=True)
        counts = pieces[rows, words].clamp(max=1) if self.first_pieces_only else pieces[rows, words]
        offsets = torch.arange(int(counts.sum()), dtype=torch.int64, device=ids.device)
        offsets = offsets - (counts.cumsum(0) - counts).repeat_interleave(counts)
        last[rows.repeat_interleave(counts), first_pieces[rows, words].repeat_interleave(counts) + offsets] = (
            exits.repeat_interleave(counts)
        )
        layers = torch.arange(1, len(self.reads) + 1, dtype=torch.int64, device=ids.device)
        return (last >= layers[:, None, None]).unsqueeze(-1)

    def _before_norm(self, _module: nn.Module, inputs: Any) -> None:
        if getattr(self._calls, "active", None) is not None and self.renormalises:
            self._calls.fresh = inputs[0]

    def _after_block(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        """Words that have left get the state that they are to have after this block."""
        active: Tensor | None = getattr(self._calls, "active", None)
        if active is None:
            return output
        mine = active[len(self._calls.states)]
        hidden = output[0] if isinstance(output, tuple) else output
        if self.renormalises:
            kept = getattr(self._calls, "sums", None)
            sums = self._calls.fresh if kept is None else torch.where(mine, self._calls.fresh, kept)
            self._calls.sums = sums
            norm = block.get_submodule(self.backbone_config.family.block_parts["output_norm"])
            hidden = norm.forward(sums)  # not by its hook
        else:
            hidden = torch.where(mine, hidden, inputs[0].to(hidden.dtype))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def word_losses(scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
    """Cross-entropy of every word at every exit, [exits, W]; labels: ids [W]."""
    assert labels is not None
    return torch.stack([F.cross_entropy(each.logits, labels, reduction="none") for each in scores])


def sample_exits(logits: np.ndarray, bounds: Sequence[int], exit_layers: Sequence[int]) -> np.ndarray:
    """After which layer each word leaves under a window and a threshold drawn for its row, by TOKEE's criterion.

    logits: float32 [exits, W, labels], of words that did not leave; row r has words bounds[r] to bounds[r + 1]. Returns
    int64 [W]. Draws come from Python's `random`, whose state the Trainer saves.
    """
    found = np.full(logits.shape[1], exit_layers[-1], np.int64)
    for start, end in zip(bounds, bounds[1:], strict=False):
        share, window, threshold = random.random(), random.choice(WINDOWS), random.choice(THRESHOLDS)
        if share < FULL_DEPTH:
            continue
        if share < FULL_DEPTH + EXTREME:
            window, threshold = random.choice([(WINDOWS[0], threshold), (window, THRESHOLDS[-1])])
        own = np.array([0, end - start], np.int32)
        rule = TOKEEWindow(threshold, window)
        found[start:end] = exits_taken(rule, logits[:, start:end], exit_layers, bounds=own)
    return found


def tokee_head(options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
    """The `head` object of a run with these options."""
    return {"type": "tagger", "frozen": options["frozen"], "freezes": options["freezes"]}


SYSTEMS = (
    System(
        "full-tagger",
        "tags words after the last layer",
        {"type": "token-classifier"},
        TagModel,
    ),
    System(
        "sentee",
        "tags words, and a row leaves with all of them",
        {"type": "tagger"},
        TagModel,
        criterion="sentee-max",
    ),
    System(
        "tokee",
        "tags words, and each leaves by itself",
        tokee_head,
        TOKEEModel,
        own=OPTIONS,
        criterion="tokee",
    ),
    System(
        "seqlab-early-exit",
        "the same, as its authors' code trains it",
        tokee_head,
        TOKEEModel,
        own=AUTHORS_OPTIONS,
        criterion="tokee",
        converter=seqlab,
    ),
)
