"""What config.json says of the encoder and its labels, checked; every fault is named with its file and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import disentangled, modern
from .disentangled import Disentangled
from .distances import BUCKETS
from .errors import shown
from .families import FAMILIES, Family, Shapes, find_family
from .json_fields import Fields, is_int, is_number
from .messages import warn
from .modern import Modern
from .ops import Activation

ACTIVATIONS: dict[str, Activation] = {  # transformers' names, and what each of them is by its formula
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}
POOLER_ACTIVATIONS: dict[str, Activation] = {**ACTIVATIONS, "tanh": "tanh"}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# A larger number is a slip, and would use up all memory before it is noticed.
MAX_LAYERS, MAX_BLOCKS, MAX_LABELS = 1000, 10_000, 1_000_000


@dataclass(frozen=True)
class BackboneConfig:
    """What config.json says of the encoder and its labels."""

    family: Family
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: Activation
    layer_norm_eps: float
    max_position_embeddings: int
    has_positions: bool  # are there embeddings of positions?
    type_vocab_size: int  # 0: no token types
    pad_token_id: int
    distance_buckets: int  # rows of the table of biases by distance; 0: there is none
    disentangled: Disentangled | None
    modern: Modern | None
    pooler_activation: Activation
    num_groups: int
    inner_group_num: int
    labels: tuple[str, ...]
    problem_type: str
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by."""
        terms = 1 if self.disentangled is None else self.disentangled.terms
        return (terms * self.head_size) ** -0.5

    @property
    def max_tokens(self) -> int:
        """Longest row that max_position_embeddings allows, special tokens included."""
        offset = self.pad_token_id + 1 if self.family.positions_after_pad else 0
        return self.max_position_embeddings - offset

    @property
    def embedding_projection(self) -> str | None:
        """Key of the linear map from embedding to hidden size; None where there is none."""
        family = self.family
        if family.embedding_projection is None or (
            self.embedding_size == self.hidden_size and not family.projects_equal_sizes
        ):
            return None
        return family.prefix + family.embedding_projection

    def block_keys(self) -> list[list[str]]:
        """Key prefixes of the blocks of each layer, in the order they run; shared blocks appear several times."""
        key = self.family.prefix + self.family.block_key
        per_group = self.num_layers / self.num_groups
        return [
            [key.format(layer=i, group=int(i / per_group), block=k) for k in range(self.inner_group_num)]
            for i in range(self.num_layers)
        ]

    def encoder_shapes(self) -> Shapes:
        """Every tensor of the encoder with its shape."""
        family, hidden, inner, embedding = self.family, self.hidden_size, self.intermediate_size, self.embedding_size
        tables = f"{family.prefix}embeddings."
        shapes: Shapes = {f"{family.prefix}{family.embeddings}.weight": (self.vocab_size, embedding)}
        if self.has_positions:
            shapes[f"{tables}position_embeddings.weight"] = (self.max_position_embeddings, embedding)
        if self.type_vocab_size:
            shapes[f"{tables}token_type_embeddings.weight"] = (self.type_vocab_size, embedding)
        shapes |= self._norm(family.prefix + family.embedding_norm, embedding)
        if family.final_norm is not None:
            shapes |= self._norm(family.prefix + family.final_norm)
        if family.distance_bias is not None:
            shapes[f"{family.prefix}{family.distance_bias}.weight"] = (self.distance_buckets, self.num_heads)
        if self.embedding_projection is not None:
            shapes |= _linear(self.embedding_projection, hidden, embedding)
        sizes = {
            "qkv": (3 * hidden, hidden),
            "intermediate": (2 * inner if family.gated else inner, hidden),
            "output": (hidden, inner),
        }
        blocks = sorted({block for layer in self.block_keys() for block in layer})
        if self.disentangled is not None:
            shapes |= self.disentangled.shapes(family.prefix, blocks, hidden)
        for block in blocks:
            for part, key in family.block_parts.items():
                if part == "attention_norm" and not self.norms_attention(block):
                    continue
                if part.endswith("norm"):
                    shapes |= self._norm(block + key)
                else:
                    shapes |= _linear(block + key, *sizes.get(part, (hidden, hidden)), bias=self._has_bias(part))
        return shapes

    def norms_attention(self, block: str) -> bool:
        """Has the block of this key a norm of attention? Where norms come first, the first layer's has none."""
        return not self.family.norm_first or block not in self.block_keys()[0]

    def _norm(self, key: str, size: int | None = None) -> Shapes:
        """Shapes of a LayerNorm of hidden states, or of so many numbers."""
        shape = (self.hidden_size if size is None else size,)
        has_bias = self.modern is None or self.modern.norm_biases
        return {f"{key}.{kind}": shape for kind in (("weight", "bias") if has_bias else ("weight",))}

    def _has_bias(self, part: str) -> bool:
        """Has a linear layer of a block a bias?"""
        if self.modern is None:
            return True
        return self.modern.feed_forward_biases if part in ("intermediate", "output") else self.modern.attention_biases

    def classifier_shapes(self) -> Shapes:
        """Tensors of the classification head of a plain Hugging Face directory, with their shapes."""
        bias = self.modern is None or self.modern.pooler_bias
        shapes = _linear(self.family.pooler, self.hidden_size, self.hidden_size, bias=bias)
        if self.family.pooler_norm is not None:
            shapes |= self._norm(self.family.pooler_norm)
        return shapes | _linear(self.family.classifier, self.num_labels, self.hidden_size)


def _linear(key: str, out_features: int, in_features: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{key}.weight": (out_features, in_features)}
    return weight | {f"{key}.bias": (out_features,)} if bias else weight


def parse_backbone(raw: Any, faults: list[str], file: str = "config.json") -> BackboneConfig | None:
    """Check config.json; faults are appended to `faults`. None where not even the family is known."""
    if not isinstance(raw, dict):
        faults.append(f"{file}: is not a JSON object")
        return None
    fields = Fields(raw, file, faults)
    kinds = ", ".join(sorted(FAMILIES))
    model_type = fields.get("model_type", f"one of {kinds}", lambda v: find_family(v) is not None, None)
    family = find_family(model_type)
    if family is None:
        return None
    key = family.key
    hidden = fields.count(key("hidden_size"))
    heads = fields.count(key("num_attention_heads"))
    layers = fields.count(key("num_hidden_layers"), most=MAX_LAYERS)
    groups = fields.count("num_hidden_groups", 1, MAX_LAYERS) if family.shares_layers else 1
    if hidden % heads:
        fields.fault(key("hidden_size"), f"is {hidden}, which {key('num_attention_heads')} = {heads} does not divide")
    if family.modern and hidden // heads % 2:
        fault = f"is {hidden}, which makes heads of {hidden // heads} numbers; rotary positions take an even number"
        fields.fault(key("hidden_size"), fault)
    if groups > layers:
        fields.fault("num_hidden_groups", f"is {groups}, more than {key('num_hidden_layers')} = {layers}")
    if raw.get("position_embedding_type", "absolute") not in ("absolute", None):
        given = shown(raw["position_embedding_type"])
        fields.fault("position_embedding_type", f"is {given}; only 'absolute' is supported")
    if raw.get("is_decoder"):
        fields.fault("is_decoder", "is true; pfengine runs encoders")
    if raw.get("quantization_config"):
        fields.fault("quantization_config", "is set; give the unquantised weights (for int8: `pfengine convert`)")
    if raw.get("auto_map"):
        warn(f"{file}: 'auto_map' names code beside it, which is never run: it is loaded as a {model_type}")
    activation = _activation(fields, key("hidden_act"), ACTIVATIONS, family.default_activation)
    vocab_size = fields.count("vocab_size")
    max_positions = fields.count("max_position_embeddings")
    pad = family.default_pad_token_id
    if "pad_token_id" not in family.lacks:
        pad = fields.get("pad_token_id", "an integer >= 0", lambda v: is_int(v) and v >= 0, 0, pad)
    if family.positions_after_pad and pad + 1 >= max_positions:
        fields.fault(
            "max_position_embeddings",
            f"is {max_positions}, which leaves no position after pad_token_id + 1 = {pad + 1}",
        )
    inner = fields.count("inner_group_num", 1, MAX_LAYERS) if family.shares_layers else 1
    if max(layers, groups) * inner > MAX_BLOCKS:
        fields.fault("inner_group_num", f"is {inner}, which makes more than {MAX_BLOCKS} blocks")
    eps, types, has_positions = family.default_norm_eps, 0, not family.modern
    if "layer_norm_eps" not in family.lacks:
        eps = fields.get(key("layer_norm_eps"), "a number > 0", lambda v: is_number(v) and v > 0, 1e-12, eps)
    if family.lean_tables:
        types = fields.get("type_vocab_size", "an integer >= 0", lambda v: is_int(v) and v >= 0, 0, 0)
        has_positions = fields.get("position_biased_input", "true or false", lambda v: isinstance(v, bool), True, True)
    elif "type_vocab_size" not in family.lacks:
        types = fields.count("type_vocab_size", 2)
    buckets = 0
    if family.distance_bias is not None:
        buckets = fields.count("relative_attention_num_buckets", BUCKETS)
        if buckets < BUCKETS:
            fields.fault("relative_attention_num_buckets", f"is {buckets}; distances are put into {BUCKETS} buckets")
    form = disentangled.parse(fields, max_positions, hidden, hidden // heads) if family.disentangled else None
    pooler = POOLER_ACTIVATIONS[family.pooler_activation]
    if family.says_pooler_activation:
        pooler = _activation(fields, key("pooler_hidden_act"), POOLER_ACTIVATIONS, family.pooler_activation)
    labels = _labels(fields)
    return BackboneConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        embedding_size=fields.count("embedding_size") if family.embedding_projection is not None else hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=fields.count(key("intermediate_size")),
        activation=activation,
        layer_norm_eps=eps,
        max_position_embeddings=max_positions,
        has_positions=has_positions,
        type_vocab_size=types,
        pad_token_id=pad,
        distance_buckets=buckets,
        disentangled=form,
        modern=modern.parse(fields, layers) if family.modern else None,
        pooler_activation=pooler,
        num_groups=groups,
        inner_group_num=inner,
        labels=labels,
        problem_type=_problem_type(fields, len(labels)),
        raw=raw,
    )


def _activation(fields: Fields, key: str, known: dict[str, Activation], default: str) -> Activation:
    """What the function is that config.json names, or the default; "gelu" where the name is wrong."""
    name: str = fields.get(
        key, f"one of {', '.join(known)}", lambda v: isinstance(v, str) and v in known, "gelu", default
    )
    return known[name]


def _labels(fields: Fields) -> tuple[str, ...]:
    """Label names in id order, as transformers has them.

    Where num_labels says another number than id2label, id2label does not count; two labels where both are absent.
    """
    id2label, count = fields.raw.get("id2label"), fields.raw.get("num_labels")
    if id2label is None or (isinstance(id2label, dict) and count is not None and count != len(id2label)):
        labels = tuple(f"LABEL_{i}" for i in range(fields.count("num_labels", 2, MAX_LABELS)))
        if id2label and len(labels) == count:
            given = f"'id2label' names {len(id2label)} labels, 'num_labels' says {shown(count)}"
            warn(f"{fields.file}: {given}: they are {labels[0]} to {labels[-1]}, as in transformers")
        return labels
    if not isinstance(id2label, dict) or not id2label:
        fields.fault("id2label", f"is {shown(id2label)}; it must map ids to label names")
        return ("LABEL_0",)
    id2label = {str(key): name for key, name in id2label.items()}
    expected = [str(i) for i in range(len(id2label))]
    if set(id2label) != set(expected):
        fields.fault("id2label", f"has the ids {shown(sorted(id2label))}; they must be 0 to {len(id2label) - 1}")
        return tuple(f"LABEL_{i}" for i in range(len(id2label)))
    wrong = [i for i in expected if not (id2label[i] is None or is_int(id2label[i]) or _is_text(id2label[i]))]
    if wrong:
        fields.fault("id2label", f"has {shown(id2label[wrong[0]])} as the name of label {wrong[0]}; names are strings")
    unnamed = [i for i in expected if id2label[i] is None]
    if unnamed:
        warn(f"{fields.file}: 'id2label' has no name for id {unnamed[0]}; it is called LABEL_{unnamed[0]}")
    return tuple(f"LABEL_{i}" if id2label[i] is None else str(id2label[i]) for i in expected)


def _is_text(value: Any) -> bool:
    """Is it a string without lone surrogates? They cannot be written to files or terminals."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _problem_type(fields: Fields, num_labels: int) -> str:
    """As transformers' text-classification pipeline decides: one label without a type scores with a sigmoid."""
    default = PROBLEM_TYPES[0] if num_labels > 1 else PROBLEM_TYPES[1]
    if fields.raw.get("problem_type") == "":
        return default
    given: str = fields.get(
        "problem_type", f"one of {', '.join(PROBLEM_TYPES)}", lambda v: v in PROBLEM_TYPES, default, default
    )
    if given == PROBLEM_TYPES[0] and num_labels < 2:
        fields.fault("problem_type", f"is {given!r}, which takes two labels or more; one label is regression")
    return given
