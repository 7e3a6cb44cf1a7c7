"""Checkpoints with random weights, for timing what no trained one is at hand for: 12 layers of any width, any head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pfengine import saving
from pfengine.config import parse_backbone
from pfengine.heads import HEADS
from pfengine.manifest import Manifest

LAYERS, HEADS_OF_ATTENTION, VOCABULARY = 12, 12, 8000
PAST_FUTURE = {"type": "past-future", "pooler": "per-layer"}
EXIT_HEADS: dict[str, tuple[dict[str, Any], int]] = {  # and how many layers there are from exit to exit
    "classifier": ({"type": "classifier"}, LAYERS),
    "authors": (PAST_FUTURE, 1),
    "authors, every second layer": (PAST_FUTURE, 2),
    "folded": (PAST_FUTURE | {"learner": "linear"}, 1),
}


def random_checkpoint(directory: Path, hidden: int, head: str) -> Path:
    """BERT of `hidden` numbers a token and 12 layers; the same encoder whatever the head, a key of EXIT_HEADS."""
    path = directory / f"{head.replace(', ', '-').replace(' ', '-')}-{hidden}"
    if path.is_dir():
        return path
    raw = {
        "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": LAYERS, "intermediate_size": 4 * hidden,
        "num_attention_heads": HEADS_OF_ATTENTION, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "type_vocab_size": 2, "hidden_act": "gelu", "id2label": {"0": "negative", "1": "positive"},
        "architectures": ["BertForSequenceClassification"],
    }  # fmt: skip
    faults: list[str] = []
    backbone = parse_backbone(raw, faults)
    assert backbone is not None, faults
    options, every = EXIT_HEADS[head]
    tensors = {}
    for shapes, seed in ((backbone.encoder_shapes(), 0), (HEADS[options["type"]].shapes(backbone, options), 1)):
        generator = torch.Generator().manual_seed(seed)
        for key, shape in shapes.items():
            if key in tensors:
                continue
            fixed = torch.zeros if key.endswith("bias") else torch.ones if "LayerNorm" in key else None
            tensors[key] = fixed(shape) if fixed else 0.02 * torch.randn(shape, generator=generator)
    plain = head == "classifier"
    engine = Manifest(
        system="full-model" if plain else "past-future",
        head=options,
        criterion="never" if plain else "entropy",
        exit_layers=tuple(range(every, LAYERS + 1, every)),
    )
    return saving.write(path, raw, engine, tensors)
