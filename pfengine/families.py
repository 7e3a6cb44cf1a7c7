"""Encoder families: what differs between BERT and its relatives, as fields and key-name maps.

A further family is an entry here. Key names are those of transformers. Inside pfengine a block (one attention and one
feed-forward network) always has the same parts; a family says under which key each part is stored, and under which key
each block of layer i. Queries, keys and values are three parts, or one of them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """Constants of one family; all key names are without the trailing `.weight` / `.bias`. Defaults are BERT's."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    tokenizers: tuple[str, ...]  # for each of them the class in `tokenizer_classes` where no file names one
    prefix: str
    block_key: str  # of a block, with {layer}, {group} (of layers that share weights) and {block} (within a layer)
    block_parts: dict[str, str]
    pooler: str  # dense on the first token, before the classifier of a plain Hugging Face directory
    classifier: str = "classifier"
    embeddings: str = "embeddings.word_embeddings"  # after the prefix
    embedding_norm: str = "embeddings.LayerNorm"  # likewise
    final_norm: str | None = None  # likewise: exits read the states of every layer through it
    pooler_norm: str | None = None  # of what the pooler gives
    norm_first: bool = False  # come norms before attention and feed-forward network? The first layer lacks the former
    gated: bool = False  # does `intermediate` make gates as well?
    modern: bool = False  # rotary positions, windows, linear layers and norms without biases: `pfengine.modern`
    distance_bias: str | None = None  # table [buckets, heads] of what attention scores are biased by, at every layer
    disentangled: bool = False  # do queries and keys score distances? `pfengine.disentangled`
    embedding_projection: str | None = None  # linear map from embedding to hidden size; None where the two are one
    shares_layers: bool = False  # config.json says how many groups share weights, and how many blocks a layer has
    shares_pooler: bool = False  # exit heads have one pooler for all layers unless told otherwise
    default_activation: str = "gelu"
    default_norm_eps: float = 1e-12
    default_pad_token_id: int = 0
    lean_tables: bool = False  # may a model be without token types, and without positions (position_biased_input)?
    positions_after_pad: bool = False  # RoBERTa: positions start at pad_token_id + 1 and skip padding ids
    pooler_activation: str = "tanh"  # as transformers calls it, where config.json does not say (pooler_hidden_act)
    says_pooler_activation: bool = False
    projects_equal_sizes: bool = True  # is there an embedding_projection where embedding and hidden size are equal?
    config_keys: Mapping[str, str] = field(default_factory=dict)  # BERT's name of a field -> this family's name
    # Of type_vocab_size, layer_norm_eps and pad_token_id those that config.json has no say in.
    lacks: tuple[str, ...] = ()

    def key(self, name: str) -> str:
        """The key in config.json of the field that BERT calls `name`."""
        return self.config_keys.get(name, name)


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
    tokenizers=("BertTokenizer",),
    prefix="bert.",
    block_key="encoder.layer.{layer}.",
    block_parts=_BERT_PARTS,
    pooler="bert.pooler.dense",
)
ROBERTA = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    tokenizers=("RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer"),
    prefix="roberta.",
    block_key="encoder.layer.{layer}.",
    block_parts=_BERT_PARTS,
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    default_pad_token_id=1,
    positions_after_pad=True,
)
ALBERT = Family(
    name="albert",
    model_types=("albert",),
    tokenizers=("AlbertTokenizer",),
    prefix="albert.",
    block_key="encoder.albert_layer_groups.{group}.albert_layers.{block}.",
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
    embedding_projection="encoder.embedding_hidden_mapping_in",
    shares_layers=True,
    shares_pooler=True,
    pooler="albert.pooler",
    default_activation="gelu_new",
)

DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert",),
    tokenizers=("BertTokenizer",),
    prefix="distilbert.",
    block_key="transformer.layer.{layer}.",
    block_parts={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    pooler="pre_classifier",
    pooler_activation="relu",
    config_keys={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    lacks=("type_vocab_size", "layer_norm_eps"),
)

ELECTRA = Family(
    name="electra",
    model_types=("electra",),
    tokenizers=("BertTokenizer",),
    prefix="electra.",
    block_key="encoder.layer.{layer}.",
    block_parts=_BERT_PARTS,
    embedding_projection="embeddings_project",
    projects_equal_sizes=False,
    pooler="classifier.dense",
    pooler_activation="gelu",
    classifier="classifier.out_proj",
)
MPNET = Family(
    name="mpnet",
    model_types=("mpnet",),
    tokenizers=("MPNetTokenizer",),
    prefix="mpnet.",
    block_key="encoder.layer.{layer}.",
    block_parts=_BERT_PARTS
    | {
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
    },
    distance_bias="encoder.relative_attention_bias",
    pooler="classifier.dense",
    classifier="classifier.out_proj",
    default_pad_token_id=1,  # of positions, whatever config.json says
    positions_after_pad=True,
    lacks=("type_vocab_size", "pad_token_id"),
)
DEBERTA = Family(
    name="deberta-v2",
    model_types=("deberta-v2",),  # of version 3 too
    tokenizers=("DebertaV2Tokenizer",),
    prefix="deberta.",
    block_key="encoder.layer.{layer}.",
    block_parts=_BERT_PARTS
    | {
        "query": "attention.self.query_proj",
        "key": "attention.self.key_proj",
        "value": "attention.self.value_proj",
    },
    disentangled=True,
    pooler="pooler.dense",
    pooler_activation="gelu",
    says_pooler_activation=True,
    default_norm_eps=1e-7,
    lean_tables=True,
)

MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert",),
    tokenizers=("TokenizersBackend",),
    prefix="model.",
    block_key="layers.{layer}.",
    block_parts={
        "qkv": "attn.Wqkv",
        "attention_output": "attn.Wo",
        "attention_norm": "attn_norm",
        "intermediate": "mlp.Wi",
        "output": "mlp.Wo",
        "output_norm": "mlp_norm",
    },
    embeddings="embeddings.tok_embeddings",
    embedding_norm="embeddings.norm",
    final_norm="final_norm",
    norm_first=True,
    gated=True,
    modern=True,
    pooler="head.dense",
    pooler_norm="head.norm",
    pooler_activation="gelu",
    says_pooler_activation=True,
    default_norm_eps=1e-5,
    default_pad_token_id=50283,
    config_keys={
        "layer_norm_eps": "norm_eps",
        "hidden_act": "hidden_activation",
        "pooler_hidden_act": "classifier_activation",
    },
    lacks=("type_vocab_size",),
)

FAMILIES = {
    kind: family
    for family in (BERT, ROBERTA, ALBERT, DISTILBERT, ELECTRA, MPNET, DEBERTA, MODERNBERT)
    for kind in family.model_types
}


def find_family(model_type: Any) -> Family | None:
    """The family of config.json's `model_type`, or None."""
    return FAMILIES.get(model_type) if isinstance(model_type, str) else None
