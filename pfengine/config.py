"""config.json and pfengine.json as checked dataclasses; every fault is named with its file and key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import shown
from .families import FAMILIES, Family
from .notices import warn

FORMAT_VERSION = 1
ACTIVATIONS = {  # transformers' names, and what each of them is by its formula
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
STORAGES = ("float", "int8-rows")
MOST_LAYERS, MOST_BLOCKS, MOST_LABELS = (
    1000,
    10_000,
    1_000_000,
)  # a number beyond is a slip, and would take all memory before it shows

_REQUIRED = object()


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
    activation: str  # "gelu" | "gelu_tanh" | "relu"
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
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
    def max_tokens(self) -> int:
        """Longest row the position embeddings allow, special tokens included."""
        offset = self.pad_token_id + 1 if self.family.positions_after_pad else 0
        return self.max_position_embeddings - offset


@dataclass(frozen=True)
class EngineConfig:
    """What pfengine.json says: head, criterion, exits, storage and history of the checkpoint."""

    system: str
    head: dict[str, Any]
    criterion: str | None = None
    threshold: float | None = None
    exit_layers: tuple[int, ...] = ()
    calibration: tuple[dict[str, Any], ...] = ()
    guarantee: dict[str, Any] | None = None  # of the threshold, as `calibrate` found it
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)  # how they compare to fp32, as it found too
    storage: str = "float"
    training: dict[str, Any] = field(default_factory=dict)
    # sizes and hashes of the files saved with it, see `manifest`; {}: not known
    files: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "system": self.system,
            "head": self.head,
            "criterion": self.criterion,
            "threshold": self.threshold,
            "exit_layers": list(self.exit_layers),
            "calibration": list(self.calibration),
            "storage": self.storage,
            "training": self.training,
        } | {key: value for key in ("guarantee", "precisions", "files") if (value := getattr(self, key))}


class _Fields:
    """Reads typed fields of one JSON object and gathers faults instead of stopping at the first."""

    def __init__(self, raw: dict[str, Any], file: str, faults: list[str]) -> None:
        self.raw, self.file, self.faults = raw, file, faults

    def fault(self, key: str, reason: str) -> None:
        self.faults.append(f"{self.file}: '{key}' {reason}")

    def get(self, key: str, kind: str, test: Callable[[Any], bool], fallback: Any, default: Any = _REQUIRED) -> Any:
        """The field, or `default` where absent; `fallback` (and a fault) where missing or wrong."""
        if key not in self.raw or (self.raw[key] is None and default is not _REQUIRED):
            if default is not _REQUIRED:
                return default
            self.fault(key, f"is missing; it must be {kind}")
            return fallback
        value = self.raw[key]
        if not test(value):
            self.fault(key, f"is {shown(value)}; it must be {kind}")
            return fallback
        return value

    def count(self, key: str, default: Any = _REQUIRED, most: int = 2**31 - 1) -> int:
        return self.get(key, f"an integer from 1 to {most}", lambda v: _is_int(v) and 0 < v <= most, 1, default)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def parse_backbone(raw: Any, faults: list[str], file: str = "config.json") -> BackboneConfig | None:
    """Check config.json; faults are appended to `faults`. None where not even the family is known."""
    if not isinstance(raw, dict):
        faults.append(f"{file}: is not a JSON object")
        return None
    fields = _Fields(raw, file, faults)
    kinds = ", ".join(sorted(FAMILIES))
    model_type = fields.get("model_type", f"one of {kinds}", lambda v: isinstance(v, str) and v in FAMILIES, None)
    if model_type is None:
        return None
    family = FAMILIES[model_type]
    hidden = fields.count("hidden_size")
    heads = fields.count("num_attention_heads")
    layers = fields.count("num_hidden_layers", most=MOST_LAYERS)
    groups = fields.count("num_hidden_groups", 1, MOST_LAYERS) if family.factorised else 1
    if hidden % heads:
        fields.fault("hidden_size", f"is {hidden}, which num_attention_heads = {heads} does not divide")
    if groups > layers:
        fields.fault("num_hidden_groups", f"is {groups}, more than num_hidden_layers = {layers}")
    if raw.get("position_embedding_type", "absolute") not in ("absolute", None):
        given = shown(raw["position_embedding_type"])
        fields.fault("position_embedding_type", f"is {given}; only 'absolute' is supported")
    if raw.get("is_decoder"):
        fields.fault("is_decoder", "is true; pfengine runs encoders")
    if raw.get("quantization_config"):
        fields.fault("quantization_config", "is set; give weights as they were before (int8: `pfengine convert`)")
    if raw.get("auto_map"):
        warn(f"{file}: 'auto_map' names code beside it, which is never run: it is loaded as a {model_type}")
    activation = fields.get(
        "hidden_act",
        f"one of {', '.join(ACTIVATIONS)}",
        lambda v: isinstance(v, str) and v in ACTIVATIONS,
        "gelu",
        family.default_activation,
    )
    vocab_size = fields.count("vocab_size")
    max_positions = fields.count("max_position_embeddings")
    pad = fields.get("pad_token_id", "an integer >= 0", lambda v: _is_int(v) and v >= 0, 0, family.default_pad_token_id)
    if family.positions_after_pad and pad + 1 >= max_positions:
        fields.fault("max_position_embeddings", f"is {max_positions}: none left after pad_token_id + 1 = {pad + 1}")
    inner = fields.count("inner_group_num", 1, MOST_LAYERS) if family.factorised else 1
    if max(layers, groups) * inner > MOST_BLOCKS:
        fields.fault("inner_group_num", f"is {inner}, which makes more than {MOST_BLOCKS} blocks")
    labels = _labels(fields)
    return BackboneConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        embedding_size=fields.count("embedding_size") if family.factorised else hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=fields.count("intermediate_size"),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=fields.get(
            "layer_norm_eps", "a number > 0", lambda v: _is_number(v) and v > 0, 1e-12, family.default_norm_eps
        ),
        max_position_embeddings=max_positions,
        type_vocab_size=fields.count("type_vocab_size", 2),
        pad_token_id=pad,
        num_groups=groups,
        inner_group_num=inner,
        labels=labels,
        problem_type=_problem_type(fields, len(labels)),
        raw=raw,
    )


def _labels(fields: _Fields) -> tuple[str, ...]:
    """Label names in id order, as transformers has them.

    Where num_labels says another number than id2label, id2label does not count; two labels where both are absent.
    """
    id2label, count = fields.raw.get("id2label"), fields.raw.get("num_labels")
    if id2label is None or (isinstance(id2label, dict) and count is not None and count != len(id2label)):
        labels = tuple(f"LABEL_{i}" for i in range(fields.count("num_labels", 2, MOST_LABELS)))
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
    wrong = [i for i in expected if not (id2label[i] is None or _is_int(id2label[i]) or _is_text(id2label[i]))]
    if wrong:
        fields.fault("id2label", f"has {shown(id2label[wrong[0]])} as the name of label {wrong[0]}; names are strings")
    unnamed = [i for i in expected if id2label[i] is None]
    if unnamed:
        warn(f"{fields.file}: 'id2label' has no name for id {unnamed[0]}; it is called LABEL_{unnamed[0]}")
    return tuple(f"LABEL_{i}" if id2label[i] is None else str(id2label[i]) for i in expected)


def _is_text(value: Any) -> bool:
    """Half a surrogate pair is none: no file and no terminal takes it."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _problem_type(fields: _Fields, num_labels: int) -> str:
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


def parse_engine(raw: Any, num_layers: int, faults: list[str], file: str = "pfengine.json") -> EngineConfig | None:
    """Check pfengine.json against a backbone of `num_layers`; faults are appended to `faults`."""
    if not isinstance(raw, dict):
        faults.append(f"{file}: is not a JSON object")
        return None
    fields = _Fields(raw, file, faults)
    version = fields.get("format_version", f"{FORMAT_VERSION}", _is_int, None)
    if version is None:
        return None
    if version != FORMAT_VERSION:
        fields.fault(
            "format_version",
            f"is {version}; this pfengine reads version {FORMAT_VERSION}: "
            + ("install a newer pfengine" if version > FORMAT_VERSION else "convert the checkpoint again"),
        )
        return None
    known = set(EngineConfig.__dataclass_fields__) | {"format_version"}
    for key in sorted(set(raw) - known):
        fields.fault(key, f"is not a field of format version {FORMAT_VERSION}")
    layers = fields.get(
        "exit_layers",
        f"a rising list of layers between 1 and {num_layers} that ends with {num_layers}",
        lambda v: (
            isinstance(v, list)
            and all(_is_int(i) and 1 <= i <= num_layers for i in v)
            and v == sorted(set(v))
            and v[-1:] == [num_layers]
        ),
        [num_layers],
    )
    return EngineConfig(
        system=fields.get("system", "a string", lambda v: isinstance(v, str) and bool(v), ""),
        head=fields.get(
            "head",
            "an object with a string 'type'",
            lambda v: isinstance(v, dict) and isinstance(v.get("type"), str),
            {},
        ),
        criterion=fields.get("criterion", "a string such as 'entropy'", lambda v: isinstance(v, str), None, None),
        threshold=fields.get("threshold", "a finite number", _is_number, None, None),
        exit_layers=tuple(layers),
        calibration=tuple(
            fields.get("calibration", "a list of objects with 'threshold' and 'layer_speedup'", _is_calibration, [], [])
        ),
        guarantee=fields.get("guarantee", "an object", lambda v: isinstance(v, dict), None, None),
        precisions=fields.get("precisions", PRECISION_FIELDS, _is_precisions, {}, {}),
        storage=fields.get("storage", f"one of {', '.join(STORAGES)}", lambda v: v in STORAGES, "float", "float"),
        training=fields.get("training", "an object", lambda v: isinstance(v, dict), {}, {}),
        files=fields.get("files", "an object of file names with 'size' and 'sha256'", _is_files, {}, {}),
    )


PRECISION_FIELDS = "an object of precisions with 'agreement', 'full_depth_agreement' and 'layer_speedup_ratio'"


def _is_precisions(value: Any) -> bool:
    keys = ("agreement", "full_depth_agreement", "layer_speedup_ratio")
    return isinstance(value, dict) and all(
        isinstance(check, dict) and all(_is_number(check.get(key)) for key in keys) for check in value.values()
    )


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        not set(name) & set("/\\\0")
        and name not in ("", ".", "..")
        and isinstance(file, dict)
        and _is_int(file.get("size"))
        and isinstance(file.get("sha256"), str)
        for name, file in value.items()
    )


def _is_calibration(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict) and _is_number(point.get("threshold")) and _is_number(point.get("layer_speedup"))
        for point in value
    )
