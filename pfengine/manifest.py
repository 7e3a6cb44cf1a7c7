"""The manifest of a checkpoint, pfengine.json: its head, criterion, exits, storage and history, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .json_fields import Fields, is_int, is_number

FORMAT_VERSION = 1
STORAGES = ("float", "int8-rows")


@dataclass(frozen=True)
class Manifest:
    """The contents of pfengine.json: head, criterion, exits, storage and history of the checkpoint."""

    system: str
    head: dict[str, Any]
    criterion: str | None = None
    threshold: float | None = None
    exit_layers: tuple[int, ...] = ()
    calibration: tuple[dict[str, Any], ...] = ()
    guarantee: dict[str, Any] | None = None  # of the threshold, from `calibrate`
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)  # how they compare to fp32, from `calibrate`
    ranking: dict[str, Any] | None = None  # the margins of `exits.top_k`, and their guarantee, from `calibrate_ranking`
    storage: str = "float"
    training: dict[str, Any] = field(default_factory=dict)
    # sizes and hashes of the files saved with it, see `file_hashes`; {} where unknown
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
        } | {key: value for key in ("guarantee", "precisions", "ranking", "files") if (value := getattr(self, key))}


def parse_manifest(raw: Any, num_layers: int, faults: list[str], file: str = "pfengine.json") -> Manifest | None:
    """Check pfengine.json against a backbone of `num_layers`; faults are appended to `faults`."""
    if not isinstance(raw, dict):
        faults.append(f"{file}: is not a JSON object")
        return None
    fields = Fields(raw, file, faults)
    if not read_version(fields):
        return None
    known = set(Manifest.__dataclass_fields__) | {"format_version"}
    for key in sorted(set(raw) - known):
        fields.fault(key, f"is not a field of format version {FORMAT_VERSION}")
    layers = fields.get(
        "exit_layers",
        f"a rising list of layers between 1 and {num_layers} that ends with {num_layers}",
        lambda v: (
            isinstance(v, list)
            and all(is_int(i) and 1 <= i <= num_layers for i in v)
            and v == sorted(set(v))
            and v[-1:] == [num_layers]
        ),
        [num_layers],
    )
    return Manifest(
        system=fields.get("system", "a string", lambda v: isinstance(v, str) and bool(v), ""),
        head=fields.get(
            "head",
            "an object with a string 'type'",
            lambda v: isinstance(v, dict) and isinstance(v.get("type"), str),
            {},
        ),
        exit_layers=tuple(layers),
        ranking=fields.get("ranking", RANKING_FIELDS, lambda v: _is_ranking(v, len(layers) - 1), None, None),
        storage=fields.get("storage", f"one of {', '.join(STORAGES)}", lambda v: v in STORAGES, "float", "float"),
        files=fields.get(
            "files",
            "an object of file names with 'size' and 'sha256'",
            lambda v: is_files(v) and not any(set(name) & set("/\\\0") or name in ("", ".", "..") for name in v),
            {},
            {},
        ),
        **judged_fields(fields),
    )


def read_version(fields: Fields) -> bool:
    """Is the format the one that is read here? A fault where it is not."""
    version = fields.get("format_version", f"{FORMAT_VERSION}", is_int, None)
    if version is not None and version != FORMAT_VERSION:
        fields.fault(
            "format_version",
            f"is {version}; this pfengine reads version {FORMAT_VERSION}: "
            + ("install a newer pfengine" if version > FORMAT_VERSION else "convert the checkpoint again"),
        )
    return version == FORMAT_VERSION


def judged_fields(fields: Fields) -> dict[str, Any]:
    """The criterion, what was measured of it, and how the checkpoint was trained."""
    return {
        "criterion": fields.get("criterion", "a string such as 'entropy'", lambda v: isinstance(v, str), None, None),
        "threshold": fields.get("threshold", "a finite number", is_number, None, None),
        "calibration": tuple(fields.get("calibration", CALIBRATION_FIELDS, _is_calibration, [], [])),
        "guarantee": fields.get("guarantee", "an object", lambda v: isinstance(v, dict), None, None),
        "precisions": fields.get("precisions", PRECISION_FIELDS, _is_precisions, {}, {}),
        "training": fields.get("training", "an object", lambda v: isinstance(v, dict), {}, {}),
    }


CALIBRATION_FIELDS = "a list of objects with 'threshold', 'layer_speedup' and counts as 'exit_rows'"
PRECISION_FIELDS = "an object of precisions with 'agreement', 'full_depth_agreement' and 'layer_speedup_ratio'"

RANKING_FIELDS = "an object with a whole number 'top_k' and 'margins', a number >= 0 or null per exit before the last"


def _is_ranking(value: Any, exits: int) -> bool:
    if not isinstance(value, dict) or not isinstance(margins := value.get("margins"), list):
        return False
    fit = all(margin is None or (is_number(margin) and margin >= 0) for margin in margins)
    return fit and len(margins) == exits and is_int(value.get("top_k")) and value["top_k"] > 0


def _is_precisions(value: Any) -> bool:
    keys = ("agreement", "full_depth_agreement", "layer_speedup_ratio")
    return isinstance(value, dict) and all(
        isinstance(check, dict) and all(is_number(check.get(key)) for key in keys) for check in value.values()
    )


def is_files(value: Any) -> bool:
    """Is it an object of files with their sizes and hashes, see `file_hashes`?"""
    return isinstance(value, dict) and all(
        isinstance(file, dict) and is_int(file.get("size")) and isinstance(file.get("sha256"), str)
        for file in value.values()
    )


def _is_calibration(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict)
        and is_number(point.get("threshold"))
        and is_number(point.get("layer_speedup"))
        and _are_counts(point.get("exit_rows", []))
        for point in value
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(is_int(count) and count >= 0 for count in value)
