"""Checkpoints with random weights, for timing what no trained one is at hand for: 12 layers of any width, any head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pfengine import checkpoint
from pfengine.config import EngineConfig, parse_backbone
from pfengine.heads import HEADS

LAYERS, HEADS_OF_ATTENTION, VOCABULARY = 12, 12, 8000
EXIT_HEADS: dict[str, dict[str, Any]] = {
    "classifier": {"type": "classifier"},
    "authors": {"type": "past-future", "pooler": "per-layer"},
    "folded": {"type": "past-future", "pooler": "per-layer", "learner": "linear"},
}


def random_checkpoint(directory: Path, hidden: int, head: str) -> Path:
    """BERT of 12 layers and `hidden` numbers a token; its encoder is the same for every head, a key of EXIT_HEADS."""
    path = directory / f"{head}-{hidden}"
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
    options = EXIT_HEADS[head]
    tensors = {}
    for shapes, seed in ((backbone.family.shapes(backbone), 0), (HEADS[options["type"]].shapes(backbone, options), 1)):
        generator = torch.Generator().manual_seed(seed)
        for key, shape in shapes.items():
            if key in tensors:
                continue
            fixed = torch.zeros if key.endswith("bias") else torch.ones if "LayerNorm" in key else None
            tensors[key] = fixed(shape) if fixed else 0.02 * torch.randn(shape, generator=generator)
    plain = head == "classifier"
    engine = EngineConfig(
        system="full-model" if plain else "past-future",
        head=options,
        criterion="never" if plain else "entropy",
        exit_layers=(LAYERS,) if plain else tuple(range(1, LAYERS + 1)),
    )
    return checkpoint.write(path, raw, engine, tensors)
