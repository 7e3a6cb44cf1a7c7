"""`pfengine export triton`: a model repository for NVIDIA Triton's python backend.

    OUT/NAME/config.pbtxt, OUT/NAME/labels.txt, OUT/NAME/1/model.py, OUT/NAME/1/checkpoint/

Inputs: "text" BYTES [rows, 1], and for pairs "text_pair". Outputs, as `serving.open_inference` gives them: "label"
BYTES [rows, 1], "score" FP32 [rows, 1], "probabilities" FP32 [rows, labels], "exit_layer" INT64 [rows, 1]. Parameters
of a request: threshold or speedup.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import cascade_saving
from ..bundled import find
from ..errors import ConfigError
from .predictor import Predictor

CHECKPOINT = "checkpoint"
INPUTS = ("text", "text_pair")
OPTIONS = {  # of `stacks.predictor.Predictor`, kept as text in config.pbtxt
    "device": str, "precision": str, "criterion": str, "threshold": float, "speedup": float, "max_length": int,
    "truncation": str,
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
MODEL = '''"""{name} for Triton's python backend; pfengine must be installed in the Python that Triton runs."""

from pfengine.stacks.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def option(name: str, text: str) -> Any:
    """The value of an option that config.pbtxt keeps as text. Raises ConfigError where it is none."""
    try:
        return OPTIONS[name](text)
    except ValueError:
        raise ConfigError(f"parameter {name!r} of config.pbtxt is {text!r}; it must be a number") from None


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_batch_size: int = 64,
    max_queue_delay: float = 0.5,
    max_queue_size: int = 1024,
    **options: Any,
) -> Path:
    """Write a checkpoint as a model into a repository, and return the model's directory.

    out: the repository, which may hold other models; it is made where there is none. name: of the model, by default
    that of the checkpoint's directory. max_batch_size: most rows that Triton puts together; max_queue_delay:
    milliseconds that it waits for them; max_queue_size: most requests that wait, after which it refuses others.
    options: of `pfengine.load`, and truncation, which config.pbtxt then holds as parameters.

    Raises ConfigError for options that make no sense, or where the model is there already; CheckpointError for a
    checkpoint that cannot be used.
    """
    source = find(checkpoint)
    name = name or Path(os.path.abspath(source)).name
    if not NAME.fullmatch(name):
        raise ConfigError(f"name is {name!r}; Triton's models are named with letters, digits, _, - and .")
    if max_batch_size < 1 or max_queue_size < 1 or not 0 <= max_queue_delay <= 60_000:
        raise ConfigError("max_batch_size and max_queue_size must be at least 1, max_queue_delay 0 to 60000 ms")
    given = {key: value for key, value in options.items() if value is not None and value != "auto"}
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ConfigError(f"there is no option {unknown[0]!r}; config.pbtxt may hold {', '.join(OPTIONS)}")
    if given.get("truncation", "truncate") not in ("truncate", "error"):
        raise ConfigError(f"truncation is {given['truncation']!r}; it must be 'truncate' or 'error'")
    # this machine need not have the device and the precision that Triton's has
    checked = {key: value for key, value in given.items() if key not in ("device", "precision")}
    labels = Predictor(source, **checked).engine.labels
    target = Path(out) / name
    if os.path.lexists(target):
        raise ConfigError(f"{target} is there already; remove it, or give another name")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=out))
        try:
            stage.chmod(0o755)
            (stage / "1").mkdir()
            (stage / "1" / "model.py").write_text(MODEL.format(name=name))
            cascade_saving.copy(source, stage / "1" / CHECKPOINT)
            (stage / "labels.txt").write_text("".join(f"{' '.join(label.split())}\n" for label in labels))
            queue = (max_batch_size, round(max_queue_delay * 1000), max_queue_size)
            (stage / "config.pbtxt").write_text(config_text(name, len(labels), *queue, given))
            stage.rename(target)  # Triton that polls the repository sees all of it or nothing
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror or error}; choose another directory") from None
    return target


def config_text(
    name: str, labels: int, max_batch_size: int, delay_microseconds: int, queue_size: int, options: Mapping[str, Any]
) -> str:
    """config.pbtxt, in protobuf's text format."""
    outputs = {"label": ("STRING", 1), "score": ("FP32", 1), "probabilities": ("FP32", labels)}
    outputs["exit_layer"] = ("INT64", 1)
    parts = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {max_batch_size}",
        *(
            f"input {{\n  name: {_quoted(each)}\n  data_type: TYPE_STRING\n  dims: [ 1 ]\n"
            + ("  optional: true\n}" if each == "text_pair" else "}")
            for each in INPUTS
        ),
        *(
            f"output {{\n  name: {_quoted(each)}\n  data_type: TYPE_{kind}\n  dims: [ {size} ]\n"
            + ('  label_filename: "labels.txt"\n}' if each == "probabilities" else "}")
            for each, (kind, size) in outputs.items()
        ),
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {delay_microseconds}\n  default_queue_policy {{\n"
        f"    timeout_action: REJECT\n    allow_timeout_override: true\n    max_queue_size: {queue_size}\n  }}\n}}",
        "instance_group {\n  count: 1\n  kind: " + ("KIND_GPU" if _on_gpu(options) else "KIND_CPU") + "\n}",
        *(
            f"parameters {{\n  key: {_quoted(key)}\n  value: {{ string_value: {_quoted(str(value))} }}\n}}"
            for key, value in options.items()
        ),
    ]
    return "\n".join(parts) + "\n"


def _on_gpu(options: Mapping[str, Any]) -> bool:
    return str(options.get("device", "cpu")).startswith("cuda")


def _quoted(text: str) -> str:
    """A string of protobuf's text format: all but plain ASCII as octal escapes of its UTF-8."""
    plain = {byte: chr(byte) for byte in range(32, 127) if chr(byte) not in '"\\'}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode()) + '"'
