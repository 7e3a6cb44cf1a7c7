"""What ModernBERT's config.json says of a layer's attention, of biases and of pooling, checked.

Warner et al., Smarter, Better, Faster, Longer (2024), section 2.1: some layers see a window of their row, the others
all of it, and each of the two kinds has rotary positions of its own base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import shown
from .json_fields import Fields, is_int, is_number

FULL, SLIDING = "full_attention", "sliding_attention"
BASES = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}  # where nothing says more
POOLINGS: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}


@dataclass(frozen=True)
class LayerAttention:
    """How the attention of a layer differs from BERT's."""

    rotary_base: float
    window: int | None  # queries see keys at most so many tokens away; None: all of their row


@dataclass(frozen=True)
class Modern:
    """What a model has beside the fields that BERT has too."""

    attention: tuple[LayerAttention, ...]  # of each layer
    attention_biases: bool  # have linear layers of attention biases?
    feed_forward_biases: bool
    norm_biases: bool
    pooler_bias: bool
    pooling: Literal["first", "mean"]  # what the classifier reads


def parse(fields: Fields, layers: int) -> Modern:
    """Read it from config.json, as transformers does; what is not supported becomes a fault."""
    local = fields.get("local_attention", "an integer >= 2", lambda v: is_int(v) and v >= 2, 128, 128)
    every = fields.get("global_attn_every_n_layers", "an integer >= 1", lambda v: is_int(v) and v >= 1, 3, 3)
    kinds = fields.get(
        "layer_types", f"a list of {layers} of {FULL!r} and {SLIDING!r}", lambda v: _are_kinds(v, layers), None, None
    )
    if kinds is None:
        kinds = [SLIDING if i % every else FULL for i in range(layers)]
    bases = {kind: _base(fields, kind) for kind in BASES}
    pooling = fields.get("classifier_pooling", "'cls' or 'mean'", lambda v: v in POOLINGS, "cls", "cls")

    def has(key: str) -> bool:
        return bool(fields.get(key, "true or false", lambda v: isinstance(v, bool), False, False))

    return Modern(
        attention=tuple(LayerAttention(bases[kind], local // 2 if kind == SLIDING else None) for kind in kinds),
        attention_biases=has("attention_bias"),
        feed_forward_biases=has("mlp_bias"),
        norm_biases=has("norm_bias"),
        pooler_bias=has("classifier_bias"),
        pooling=POOLINGS[pooling],
    )


def _base(fields: Fields, kind: str) -> float:
    """The base of the angles of one kind of layers: of `rope_parameters`, or of a key of older files."""
    key, default = BASES[kind]
    found = fields.raw.get("rope_parameters")
    of_kind: Any = found.get(kind) if isinstance(found, Mapping) else None
    of_kind = {} if of_kind is None else of_kind
    if not isinstance(of_kind, Mapping):
        fields.fault("rope_parameters", f"has {shown(of_kind)} for {kind}; it must be an object")
        return default
    form = of_kind.get("rope_type", "default")
    if form != "default" or fields.raw.get("rope_scaling"):
        named = shown(form) if form != "default" else "rope_scaling"
        fields.fault("rope_parameters", f"asks for {named}; only rotary positions that are not scaled are supported")
    if "rope_theta" in of_kind:
        base = of_kind["rope_theta"]
        if not (is_number(base) and base > 0):
            fields.fault("rope_parameters", f"has the base {shown(base)} for {kind}; it must be a number > 0")
            return default
        return float(base)
    return float(fields.get(key, "a number > 0", lambda v: is_number(v) and v > 0, default, default))


def _are_kinds(value: Any, layers: int) -> bool:
    return value is None or (isinstance(value, list) and len(value) == layers and set(value) <= set(BASES))
