"""What pfengine is measured beside: transformers eager, and an early-exit loop as research code writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pfengine
from pfengine import reader
from pfengine.bundled import BUNDLED
from pfengine.checkpoint import Checkpoint
from pfengine.heads import PREFIX
from pfengine.tokenization import Row, Tokenizer

CHECKPOINT = os.environ.get("PFENGINE_BENCH_CHECKPOINT", "sst2")
Answers = tuple[np.ndarray, np.ndarray]  # logits [rows, labels], exit layers [rows]


def open_checkpoint() -> Checkpoint:
    path = BUNDLED / CHECKPOINT
    return reader.read(path if path.is_dir() else CHECKPOINT)


class Eager:
    """transformers' encoder with the exit head in plain torch; fp32, padded batches, as its authors would run it."""

    def __init__(self, ckpt: Checkpoint) -> None:
        from transformers import AutoConfig, AutoModel

        prefix = ckpt.backbone.family.prefix
        config = AutoConfig.for_model(**{**ckpt.backbone.raw, "attn_implementation": "sdpa"})
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False).eval()
        weights = {key.removeprefix(prefix): value for key, value in ckpt.tensors.items() if key.startswith(prefix)}
        missing, extra = self.encoder.load_state_dict(weights, strict=False)
        assert not extra, extra
        assert all("position_ids" in key for key in missing), missing
        self.head = {key.removeprefix(PREFIX): value for key, value in ckpt.tensors.items() if key.startswith(PREFIX)}
        self.n, self.labels = ckpt.backbone.num_layers, ckpt.backbone.num_labels
        self.pad = ckpt.backbone.pad_token_id
        self.tokenizer = Tokenizer(ckpt.tokenizer, ckpt.backbone)

    def rows(self, texts: Sequence[str]) -> list[Row]:
        return self.tokenizer.encode(enumerate(texts))  # type: ignore[return-value]

    def pooled(self, first: Tensor, layer: int) -> Tensor:
        return torch.tanh(F.linear(first, self.head["poolers.weight"][layer], self.head["poolers.bias"][layer]))

    def slot(self, state: Tensor, layer: int) -> Tensor:
        return F.linear(state, self.head["projections.weight"][layer], self.head["projections.bias"][layer])

    def logits(self, past: Tensor, future: Tensor, layers: int) -> Tensor:
        gate = F.linear(torch.tanh(past[..., self.labels :] / layers), self.head["gate.weight"], self.head["gate.bias"])
        keep = torch.sigmoid(gate)
        return 2 * keep * past[..., : self.labels] + (2 - 2 * keep) * future

    @torch.inference_mode()
    def full_depth(self, texts: Sequence[str], batch_size: int) -> Answers:
        """Padded batches sorted by length, every layer, logits of the last."""
        rows = sorted(self.rows(texts), key=lambda row: len(row.ids))
        out = torch.empty(len(rows), self.labels)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = len(batch[-1].ids)
            ids = torch.full((len(batch), longest), self.pad)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(batch):
                ids[i, : len(row.ids)] = torch.from_numpy(row.ids)
                mask[i, : len(row.ids)] = 1
            hidden = self.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
            past = torch.stack([self.slot(self.pooled(h[:, 0], i), i) for i, h in enumerate(hidden)]).sum(0)
            out[[row.row_id for row in batch]] = self.logits(past, torch.zeros(1), self.n)
        return out.numpy(), np.full(len(rows), self.n)

    @torch.inference_mode()
    def research_loop(self, texts: Sequence[str], threshold: float) -> Answers:
        """One row at a time; after every layer the head, the entropy, and a look at its value."""
        logits, exits = [], []
        for row in self.rows(texts):
            x = self.encoder.embeddings(input_ids=torch.from_numpy(row.ids)[None])
            past = torch.zeros(1, 2 * self.labels)
            for i in range(self.n):
                x = self.encoder.encoder.layer[i](x)
                x = x[0] if isinstance(x, tuple) else x
                pooled = self.pooled(x[:, 0], i)
                past = past + self.slot(pooled, i)
                future = torch.zeros(1, self.labels)
                for j in range(i + 1, self.n):
                    weight, bias = self.head["learners.weight"][j - 1], self.head["learners.bias"][j - 1]
                    future = future + self.slot(torch.tanh(F.linear(pooled, weight, bias)), j)[:, : self.labels]
                answer = self.logits(past, future, i + 1)
                log_p = torch.log_softmax(answer, -1)
                if i == self.n - 1 or -(log_p.exp() * log_p).sum().item() < threshold:
                    break
            logits.append(answer[0].numpy())
            exits.append(i + 1)
        return np.array(logits), np.array(exits)


def contestants(ckpt: Checkpoint, batch_size: int) -> dict[str, Callable[[Sequence[str]], Answers]]:
    """Name -> function from texts to answers; the first is what speed-ups are measured against."""
    engine = pfengine.load(ckpt.path, precision="fp32")
    eager = Eager(ckpt)
    threshold = ckpt.manifest.threshold
    assert threshold is not None, "the benchmark needs a checkpoint with a threshold of its own"

    def run(criterion: object) -> Callable[[Sequence[str]], Answers]:
        def call(texts: Sequence[str]) -> Answers:
            rule = pfengine.exits.Replay(exits.tolist()) if criterion == "replay" else criterion
            out = engine.predict(texts, criterion=rule, batch_size=batch_size)  # type: ignore[arg-type]
            return out.logits, out.exit_layers

        return call

    texts = read_texts()
    exits = engine.predict(texts).exit_layers
    return {
        "pfengine, exits off": run("never"),
        "pfengine, exits on": run(None),
        "pfengine, replay": run("replay"),
        "transformers eager": lambda texts: eager.full_depth(texts, batch_size),
        "research loop, batch 1": lambda texts: eager.research_loop(texts, threshold),
    }


def read_texts() -> list[str]:
    """Rows of the SST-2 development set: 96, or PFENGINE_BENCH_ROWS of them."""
    rows = (Path(__file__).parent / "sst2_dev_96.txt").read_text(encoding="utf-8").splitlines()
    return rows[: int(os.environ.get("PFENGINE_BENCH_ROWS", len(rows)))]
