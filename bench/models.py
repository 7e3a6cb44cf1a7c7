"""Checkpoints with random weights, for timing where there is no trained one: 12 layers of any width, any head.

Written file by file, as docs/architecture.md describes a checkpoint directory, so that any version of pfengine reads
them and none is needed to make them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, HEADS_OF_ATTENTION, VOCABULARY, LABELS = 12, 12, 8000, 2
PAST_FUTURE = {"type": "past-future", "pooler": "per-layer"}
BARE = {"type": "linear", "pooler": "none"}  # the smallest exit: a product of a few columns
EXIT_HEADS: dict[str, tuple[dict[str, Any], int]] = {  # with the number of layers from one exit to the next
    "classifier": ({"type": "classifier"}, LAYERS),
    "bare": (BARE, 1),
    "bare, every second layer": (BARE, 2),
    "authors": (PAST_FUTURE, 1),
    "authors, every second layer": (PAST_FUTURE, 2),
    "folded": (PAST_FUTURE | {"learner": "linear"}, 1),
}
BASE = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 512}  # transformers' rest
FAMILIES: dict[str, dict[str, Any]] = {  # config.json of a model of base size, by model_type
    "distilbert": {"vocab_size": VOCABULARY, "n_layers": 6},
    "electra": BASE | {
        "embedding_size": 768, "hidden_size": 768, "num_attention_heads": HEADS_OF_ATTENTION, "intermediate_size": 3072,
    },
    "mpnet": BASE | {"max_position_embeddings": 514},
    "modernbert": {"vocab_size": VOCABULARY, "pad_token_id": 0},  # its base model's sizes: 22 layers
    "deberta-v2": BASE | {  # version 3
        "hidden_size": 768, "num_attention_heads": HEADS_OF_ATTENTION, "intermediate_size": 3072,
        "relative_attention": True, "position_buckets": 256, "max_relative_positions": -1, "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "position_biased_input": False,
        "type_vocab_size": 0,
    },
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def random_checkpoint(directory: Path, hidden: int, head: str) -> Path:
    """A BERT of 12 layers and hidden size `hidden`. head: a key of EXIT_HEADS; all have the same encoder."""
    options, every = EXIT_HEADS[head]
    plain = options["type"] == "classifier"
    system, shapes = {
        "classifier": ("full-model", classifier_shapes), "linear": ("linear", linear_shapes),
        "past-future": ("past-future", past_future_shapes),
    }[options["type"]]  # fmt: skip
    tensors = random_tensors(encoder_shapes(hidden), seed=0) | random_tensors(shapes(hidden), seed=1)
    manifest = {
        "format_version": 1,
        "system": system,
        "head": options,
        "criterion": "never" if plain else "entropy",
        "exit_layers": list(range(every, LAYERS + 1, every)),
    }
    name = f"{head.replace(', ', '-').replace(' ', '-')}-{hidden}"
    return kept(directory / name, lambda stage: write(stage, hidden, manifest, tensors))


def random_tagger(directory: Path, hidden: int) -> Path:
    """The encoder of `random_checkpoint` with exits that score every token."""
    tensors = random_tensors(encoder_shapes(hidden), seed=0) | random_tensors(linear_shapes(hidden), seed=1)
    manifest = {
        "format_version": 1, "system": "tagger", "head": {"type": "tagger"}, "criterion": "never",
        "exit_layers": list(range(1, LAYERS + 1)),
    }  # fmt: skip
    return kept(directory / f"tagger-{hidden}", lambda stage: write(stage, hidden, manifest, tensors))


def family_checkpoint(directory: Path, kind: str) -> Path:
    """A classifier of another family with random weights, as transformers makes and saves it."""

    def make(stage: Path) -> None:
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, num_labels=LABELS, **FAMILIES[kind])
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(stage)

    return kept(directory / kind, make)


def write(stage: Path, hidden: int, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config = {
        "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": LAYERS, "intermediate_size": 4 * hidden,
        "num_attention_heads": HEADS_OF_ATTENTION, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "type_vocab_size": 2, "hidden_act": "gelu", "id2label": {"0": "negative", "1": "positive"},
        "architectures": ["BertForSequenceClassification"],
    }  # fmt: skip
    (stage / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (stage / "pfengine.json").write_text(json.dumps(manifest, indent=2) + "\n")
    save_file(tensors, stage / "model.safetensors", {"format": "pt"})


def kept(path: Path, make: Callable[[Path], None]) -> Path:
    """The directory at `path`, which `make` fills if it does not exist. It is never there half filled."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            make(stage)
            stage.rename(path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return path


def random_tensors(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Biases are zero, weights of LayerNorm one, all others normal with a standard deviation of 0.02."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        fixed = torch.zeros if key.endswith("bias") else torch.ones if "LayerNorm" in key else None
        tensors[key] = fixed(shape) if fixed else 0.02 * torch.randn(shape, generator=generator)
    return tensors


def encoder_shapes(hidden: int) -> Shapes:
    """Shapes by the names of transformers."""
    tables = {"word": VOCABULARY, "position": 512, "token_type": 2}
    shapes: Shapes = {f"bert.embeddings.{name}_embeddings.weight": (rows, hidden) for name, rows in tables.items()}
    shapes |= _layer_norm("bert.embeddings.LayerNorm", hidden)
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{name}", hidden, hidden)
        shapes |= _linear(f"{layer}.attention.output.dense", hidden, hidden)
        shapes |= _layer_norm(f"{layer}.attention.output.LayerNorm", hidden)
        shapes |= _linear(f"{layer}.intermediate.dense", 4 * hidden, hidden)
        shapes |= _linear(f"{layer}.output.dense", hidden, 4 * hidden)
        shapes |= _layer_norm(f"{layer}.output.LayerNorm", hidden)
    return shapes


def classifier_shapes(hidden: int) -> Shapes:
    return _linear("bert.pooler.dense", hidden, hidden) | _linear("classifier", LABELS, hidden)


def linear_shapes(hidden: int) -> Shapes:
    """Shapes of a linear head without poolers, of rows or of tokens."""
    weight, bias = (LAYERS, LABELS, hidden), (LAYERS, LABELS)
    return {"exit_head.classifiers.weight": weight, "exit_head.classifiers.bias": bias}


def past_future_shapes(hidden: int) -> Shapes:
    """Shapes of the authors' form: pooler, projection to labels and gate, and (not for layer 1) learner, per layer."""
    shapes: Shapes = {}
    for name, (rows, outputs) in {
        "poolers": (LAYERS, hidden), "learners": (LAYERS - 1, hidden), "projections": (LAYERS, 2 * LABELS),
    }.items():  # fmt: skip
        shapes |= {f"exit_head.{name}.weight": (rows, outputs, hidden), f"exit_head.{name}.bias": (rows, outputs)}
    return shapes | _linear("exit_head.gate", LABELS, LABELS)


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, hidden: int) -> Shapes:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
