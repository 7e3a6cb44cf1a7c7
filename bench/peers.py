"""Peers of pfengine with exits: transformers eager, and an early-exit loop as in research code."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

import pfengine

from .peer_heads import build
from .rows import Row

CHECKPOINT = os.environ.get("PFENGINE_BENCH_CHECKPOINT", "sst2")
Answers = tuple[np.ndarray, np.ndarray]  # logits [rows, labels], exit layers [rows]


class Opened(NamedTuple):
    """A checkpoint directory, read without pfengine."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]  # float32
    tokenizer: Tokenizer | None

    def rows(self, texts: Sequence[str]) -> list[Row]:
        assert self.tokenizer is not None, f"{self.path} has no tokenizer.json"
        self.tokenizer.no_padding()
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]


def read(path: Path) -> Opened:
    stored: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        stored |= load_file(file)
    tensors = {key: value.float() for key, value in stored.items() if not key.endswith(".scale")}
    for key in stored.keys() - tensors.keys():  # of matrices kept as int8, one per row
        tensors[key.removesuffix(".scale")] *= stored[key][..., None]
    config, manifest = (json.loads((path / name).read_text()) for name in ("config.json", "pfengine.json"))
    tokenizer = path / "tokenizer.json"
    return Opened(path, config, manifest, tensors, Tokenizer.from_file(str(tokenizer)) if tokenizer.exists() else None)


@functools.cache
def open_checkpoint() -> Opened:
    """The bundled checkpoint, or the one that PFENGINE_BENCH_CHECKPOINT names."""
    bundled = Path(pfengine.__file__).parent / "checkpoints" / CHECKPOINT
    return read(bundled if bundled.is_dir() else Path(CHECKPOINT))


class Eager:
    """transformers' encoder with the exit head in plain torch; fp32, padded batches, as its authors would run it."""

    def __init__(self, ckpt: Opened) -> None:
        from transformers import AutoConfig, AutoModel

        word = "embeddings.word_embeddings.weight"
        (prefix,) = (key.removesuffix(word) for key in ckpt.tensors if key.endswith(word))
        config = AutoConfig.for_model(**{**ckpt.config, "attn_implementation": "sdpa"})
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False).eval()
        weights = {key.removeprefix(prefix): value for key, value in ckpt.tensors.items() if key.startswith(prefix)}
        missing, extra = self.encoder.load_state_dict(weights, strict=False)
        assert not extra, extra
        assert all("position_ids" in key for key in missing), missing
        self.head = build(ckpt.manifest["head"], ckpt.tensors)
        self.n, self.labels = config.num_hidden_layers, len(ckpt.config["id2label"])
        self.pad = ckpt.config.get("pad_token_id", 0)
        self.rows = ckpt.rows

    @torch.inference_mode()
    def full_depth(self, texts: Sequence[str], batch_size: int) -> Answers:
        """Padded batches sorted by length, all layers, logits after the last."""
        rows = sorted(enumerate(self.rows(texts)), key=lambda row: len(row[1]))
        out = torch.empty(len(rows), self.labels)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = len(batch[-1][1])
            ids = torch.full((len(batch), longest), self.pad)
            mask = torch.zeros_like(ids)
            for i, (_, row) in enumerate(batch):
                ids[i, : len(row)] = torch.tensor(row)
                mask[i, : len(row)] = 1
            hidden = self.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
            out[[row_id for row_id, _ in batch]] = self.head.full_depth(hidden, mask)
        return out.numpy(), np.full(len(rows), self.n)

    @torch.inference_mode()
    def research_loop(self, texts: Sequence[str], threshold: float) -> Answers:
        """One row at a time; after every layer the head and the entropy, whose value is read at once."""
        logits, exits = [], []
        for row in self.rows(texts):
            x = self.encoder.embeddings(input_ids=torch.tensor(row)[None])
            mask, past = torch.ones(1, len(row)), None
            for i in range(self.n):
                x = self.encoder.encoder.layer[i](x)
                x = x[0] if isinstance(x, tuple) else x
                answer, past = self.head.step(x, mask, i, past)
                log_p = torch.log_softmax(answer, -1)
                if i == self.n - 1 or -(log_p.exp() * log_p).sum().item() < threshold:
                    break
            logits.append(answer[0].numpy())
            exits.append(i + 1)
        return np.array(logits), np.array(exits)


class FullDepth(nn.Module):
    """The checkpoint's encoder and exit head with exits off, as one module that exporters can trace."""

    def __init__(self, eager: Eager) -> None:
        super().__init__()
        self.encoder, self.head = eager.encoder, eager.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        out = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, output_hidden_states=True
        )
        return self.head.full_depth(out.hidden_states[1:], attention_mask)


def contestants(ckpt: Opened, batch_size: int) -> dict[str, Callable[[Sequence[str]], Answers]]:
    """Name -> function from texts to answers; the first is what speed-ups are measured against."""
    engine = pfengine.load(ckpt.path, precision="fp32")
    eager = Eager(ckpt)
    threshold = ckpt.manifest["threshold"]
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
