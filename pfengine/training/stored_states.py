"""States of a finished model's layers, read once and kept: what attached exits are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..api import BATCH_TOKENS, Engine, load
from ..checkpoint import Checkpoint
from ..errors import ConfigError, InputError
from ..exits.base import MULTI, REGRESSION
from ..ops.flight import Answers
from ..tokenization import Row, batches, pack
from ..torch_state import isolated
from .losses import given_or_not
from .model import ExitModel

MAX_BYTES = 8 << 30  # of states kept in memory


@dataclass(frozen=True)
class States(Dataset[dict[str, Tensor]]):
    """Rows to train exits on: {"states": [T, n, H], "labels": the answer to a row}.

    states: float32 [units, n, H], what the exits read after each of n layers: of each row one vector, or one per token.
    bounds: of the rows in those units, int64 [rows + 1]. answers: the finished model's, as
    `losses.row_losses` takes them.
    """

    states: Tensor
    bounds: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, end = self.bounds[index : index + 2].tolist()
        return {"states": self.states[start:end], "labels": self.answers[index]}


def encoded(texts: list[Any], engine: Engine) -> list[Row]:
    """Texts as the engine reads them. ConfigError names a bad one."""
    rows: list[Row] = []
    for row in engine.tokenizer.encode(enumerate(texts)):
        if isinstance(row, InputError):
            raise ConfigError(f"training data, {row}")
        rows.append(row)
    return rows


def read_states(ckpt: Checkpoint, teacher: Engine, exits: ExitModel, rows: list[Row], progress: Any = None) -> States:
    """What `exits` read after each layer of the model in `ckpt`, and the answers of `teacher`, its engine.

    progress: wraps the pass over the rows, given how many batches there are. ConfigError where the exits read other
    things after one layer than after another, or where the states do not fit into `MAX_BYTES`.
    """
    if len(reads := set(exits.reads)) > 1:
        raise ConfigError(
            f"the exits read {' and '.join(sorted(reads))}; attach stores one kind of state, of all layers"
        )
    by_token = bool(reads & {"all", "query"})
    lengths = torch.tensor([len(row.ids) if by_token else 1 for row in rows], dtype=torch.int64, device="cpu")
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    size = (int(bounds[-1]), teacher.model.num_layers, teacher.model.config.hidden_size)
    if (taken := 4 * size[0] * size[1] * size[2]) > MAX_BYTES:
        raise ConfigError(f"the states of {len(rows)} rows take {taken / 1e9:.0f} GB; give a smaller max_rows")
    manifest = replace(ckpt.manifest, system="attached", head=exits.head_config, exit_layers=exits.exit_layers)
    tensors = {**ckpt.tensors, **{key: value.detach() for key, value in exits.head_tensors().items()}}
    reader = load(replace(ckpt, manifest=manifest, tensors=tensors), precision="fp32", criterion="never").model
    states = torch.empty(size, dtype=torch.float32, device="cpu")
    packed = list(batches(rows, BATCH_TOKENS))
    for part in progress(packed, len(packed)) if progress is not None else packed:
        batch = pack(part, reader.config)
        flight = reader.carrier.start(batch, np.arange(len(part)), Answers(0, len(part), reader.config.num_labels))
        units = np.concatenate([np.arange(*bounds[i : i + 2].tolist()) for i in batch.row_ids])
        for layer in range(1, reader.num_layers + 1):
            flight.advance(reader.full_depth, until=layer, scores=False)
            states[units, layer - 1] = flight.states().cpu()
    return States(states, bounds, answers_of(_logits(teacher, states, exits, rows), ckpt.backbone.problem_type))


def answers_of(logits: Tensor, problem_type: str) -> Tensor:
    """What exits learn in the place of labels: probabilities [rows, C], of label sets [rows, C, 2]; scores [rows]."""
    if problem_type == REGRESSION and logits.shape[1] == 1:
        return logits[:, 0]
    if problem_type == MULTI:
        return given_or_not(logits)
    return torch.softmax(logits, -1)


def _logits(teacher: Engine, states: Tensor, exits: ExitModel, rows: list[Row]) -> Tensor:
    """Of the finished model, [rows, C]; where the states are what its classifier reads, without a second pass."""
    if teacher.model.head.reads(teacher.model.num_layers) != exits.reads[-1]:
        return torch.from_numpy(teacher.predict(rows).logits)
    bounds = torch.arange(len(rows) + 1, dtype=torch.int32, device=teacher.device)
    with isolated():
        last, _ = teacher.model.head.step(teacher.model.num_layers, states[:, -1].to(teacher.device), bounds, (), True)
    assert last is not None
    return last.logits.cpu()


def stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: states [B, T, n, H] with nan behind the shorter rows, and labels."""
    states = pad_sequence([row["states"] for row in rows], batch_first=True, padding_value=torch.nan)
    return {"states": states, "labels": torch.stack([row["labels"] for row in rows])}


def unstack(states: Tensor) -> tuple[list[Tensor], Tensor]:
    """What the head reads after each layer, n times [units, H], and the bounds of rows in it, int32 [B + 1]."""
    there = ~states[:, :, 0, 0].isnan()
    bounds = torch.nn.functional.pad(there.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return list(states[there].unbind(1)), bounds


class OnStates(nn.Module):
    """The head of an exit model alone, trained on stored states."""

    def __init__(self, exits: ExitModel) -> None:
        super().__init__()
        self.exits = exits

    def forward(self, states: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """states: [B, T, n, H]; labels: the full model's answers."""
        read, bounds = unstack(states)
        out: dict[str, Any] = self.exits.outputs(self.exits.weigh(read, bounds), labels, bounds)
        return out
