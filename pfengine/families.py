"""Encoder families: what differs between BERT, RoBERTa and ALBERT, as fields and key-name maps.

Key names are transformers'. Inside pfengine a block (one attention + one feed-forward) always has the same eight
parts; a family says under which key each part is stored and which blocks make up layer i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import BackboneConfig

Shapes = dict[str, tuple[int, ...]]

PARTS = ("query", "key", "value", "attention_output", "attention_norm", "intermediate", "output", "output_norm")


@dataclass(frozen=True)
class Family:
    """Constants of one family; all key names are without the trailing `.weight` / `.bias`."""

    name: str
    model_types: tuple[str, ...]
    prefix: str
    block_parts: dict[str, str]
    pooler: str  # dense + tanh on the first token, in front of the classifier of a plain HF directory
    classifier: str
    default_activation: str
    default_norm_eps: float
    default_pad_token_id: int
    positions_after_pad: bool  # RoBERTa: positions start at pad_token_id + 1 and skip padding ids
    factorised: bool  # ALBERT: embedding_size < hidden_size, layers shared in groups
    needs_type_ids: bool  # does transformers 5's tokenizer of the family tell the texts of a pair apart

    def blocks(self, config: BackboneConfig) -> list[list[str]]:
        """Key prefixes of the blocks of each layer, in the order they run; shared blocks appear several times."""
        if not self.factorised:
            return [[f"{self.prefix}encoder.layer.{i}."] for i in range(config.num_layers)]
        per_group = config.num_layers / config.num_groups
        return [
            [
                f"{self.prefix}encoder.albert_layer_groups.{int(i / per_group)}.albert_layers.{k}."
                for k in range(config.inner_group_num)
            ]
            for i in range(config.num_layers)
        ]

    def shapes(self, config: BackboneConfig) -> Shapes:
        """Every backbone tensor with its shape."""
        hidden, inner, embedding = config.hidden_size, config.intermediate_size, config.embedding_size
        shapes: Shapes = {
            f"{self.prefix}embeddings.word_embeddings.weight": (config.vocab_size, embedding),
            f"{self.prefix}embeddings.position_embeddings.weight": (config.max_position_embeddings, embedding),
            f"{self.prefix}embeddings.token_type_embeddings.weight": (config.type_vocab_size, embedding),
            f"{self.prefix}embeddings.LayerNorm.weight": (embedding,),
            f"{self.prefix}embeddings.LayerNorm.bias": (embedding,),
        }
        if self.factorised:
            shapes |= _linear(f"{self.prefix}encoder.embedding_hidden_mapping_in", hidden, embedding)
        sizes = {"intermediate": (inner, hidden), "output": (hidden, inner)}
        for block in sorted({block for layer in self.blocks(config) for block in layer}):
            for part, key in self.block_parts.items():
                if part.endswith("norm"):
                    shapes |= {f"{block}{key}.weight": (hidden,), f"{block}{key}.bias": (hidden,)}
                else:
                    shapes |= _linear(block + key, *sizes.get(part, (hidden, hidden)))
        return shapes

    def classifier_shapes(self, config: BackboneConfig) -> Shapes:
        """Tensors of the classification head of a plain Hugging Face directory."""
        hidden = config.hidden_size
        return _linear(self.pooler, hidden, hidden) | _linear(self.classifier, config.num_labels, hidden)


def _linear(key: str, out_features: int, in_features: int) -> Shapes:
    return {f"{key}.weight": (out_features, in_features), f"{key}.bias": (out_features,)}


_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}

BERT = Family(
    name="bert",
    model_types=("bert",),
    prefix="bert.",
    block_parts=_BERT_PARTS,
    pooler="bert.pooler.dense",
    classifier="classifier",
    default_activation="gelu",
    default_norm_eps=1e-12,
    default_pad_token_id=0,
    positions_after_pad=False,
    factorised=False,
    needs_type_ids=True,
)
ROBERTA = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    prefix="roberta.",
    block_parts=_BERT_PARTS,
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    default_activation="gelu",
    default_norm_eps=1e-12,
    default_pad_token_id=1,
    positions_after_pad=True,
    factorised=False,
    needs_type_ids=False,
)
ALBERT = Family(
    name="albert",
    model_types=("albert",),
    prefix="albert.",
    block_parts={
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "attention_output": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "intermediate": "ffn",
        "output": "ffn_output",
        "output_norm": "full_layer_layer_norm",
    },
    pooler="albert.pooler",
    classifier="classifier",
    default_activation="gelu_new",
    default_norm_eps=1e-12,
    default_pad_token_id=0,
    positions_after_pad=False,
    factorised=True,
    needs_type_ids=False,
)

FAMILIES = {model_type: family for family in (BERT, ROBERTA, ALBERT) for model_type in family.model_types}
