"""A model in the peers' formats. Each is made once and kept in the cache; an unfinished one is never left there."""

from __future__ import annotations

import functools
import hashlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import models
from .knobs import BUNDLED, CACHE, Model
from .models import VOCABULARY, random_checkpoint
from .peers import Eager, FullDepth, open_checkpoint, read, read_texts
from .rows import Row, make_rows, padded

CALIBRATION_ROWS = 30
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # in the order of BertForSequenceClassification's arguments
FAMILY = "family-"


def source(model: Model) -> Path:
    """The checkpoint that all contestants run."""
    if isinstance(model, int):
        return random_checkpoint(CACHE, model, "classifier")
    if model == BUNDLED:
        return open_checkpoint().path
    if model.startswith(FAMILY):
        return models.family_checkpoint(CACHE, model.removeprefix(FAMILY))
    return random_checkpoint(CACHE, int(model.removeprefix("random-")), "authors")


def inputs(model: Model) -> tuple[str, ...]:
    """Those of INPUTS that it takes: some families have no token types."""
    return (
        INPUTS[:2]
        if model in {FAMILY + kind for kind in ("distilbert", "mpnet", "modernbert", "deberta-v2")}
        else INPUTS
    )


def batch_of(model: Model, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """A padded batch as the model takes it."""
    batch = padded(rows)
    return {name: batch[name] for name in inputs(model)}


def rows_of(model: Model, n: int, seed: int = 0) -> list[Row]:
    """Token ids: of sentences for the bundled checkpoint, otherwise random ones of the same lengths."""
    return open_checkpoint().rows(read_texts()[:n]) if model == BUNDLED else make_rows(n, seed)


def load_transformers(model: Model, dtype: torch.dtype) -> Any:
    """A module from `inputs` to logits, or to an object that has `logits`."""
    if isinstance(model, str) and model.startswith(FAMILY):
        from transformers import AutoModelForSequenceClassification

        of_family = AutoModelForSequenceClassification.from_pretrained(
            source(model), dtype=dtype, local_files_only=True, trust_remote_code=False
        )
        return of_family.eval()
    if isinstance(model, str):
        return FullDepth(Eager(open_checkpoint() if model == BUNDLED else read(source(model)))).eval().to(dtype)
    from transformers import BertForSequenceClassification

    path = source(model)
    loaded = BertForSequenceClassification.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
    )
    return loaded.eval()


def openvino_fp32(model: Model) -> Path:
    def make(directory: Path) -> None:
        import openvino

        converted = openvino.convert_model(load_transformers(model, torch.float32), example_input=_example(model))
        openvino.save_model(converted, directory / "model.xml", compress_to_fp16=False)

    return kept("openvino", model, "fp32", make) / "model.xml"


def openvino_int8(model: Model) -> Path:
    """Quantised after training by NNCF, as for any transformer."""

    def make(directory: Path) -> None:
        import nncf
        import openvino

        plain = openvino.Core().read_model(openvino_fp32(model))
        rows = [batch_of(model, [row]) for row in rows_of(model, CALIBRATION_ROWS, seed=2)]
        quantised = nncf.quantize(
            plain, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_ROWS
        )
        openvino.save_model(quantised, directory / "model.xml", compress_to_fp16=False)

    return kept("nncf", model, "int8", make) / "model.xml"


def onnx_fp32(model: Model) -> Path:
    def make(directory: Path) -> None:
        example, names = _example(model), inputs(model)
        torch.onnx.export(
            load_transformers(model, torch.float32),
            tuple(example[name] for name in names),
            directory / "model.onnx",
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names},
            dynamo=False,
        )

    return kept("onnx", model, "fp32", make) / "model.onnx"


def onnx_int8(model: Model) -> Path:
    """Quantised by ONNX Runtime: weights beforehand, with a scale per channel; activations at run time."""

    def make(directory: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx_fp32(model), directory / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)

    return kept("onnxruntime", model, "int8", make) / "model.onnx"


def _example(model: Model) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    return {name: torch.from_numpy(array) for name, array in batch_of(model, ids.tolist()).items()}


def place(package: str, model: Model, precision: str) -> Path:
    """A path named after the release of the package that makes the model, and after the weights."""
    weights = _digest() if model == BUNDLED else str(model)
    return CACHE / f"{package}-{version(package)}-{precision}-{weights}"


def kept(package: str, model: Model, precision: str, make: Callable[[Path], None]) -> Path:
    return models.kept(place(package, model, precision), make)


@functools.cache
def _digest() -> str:
    found = hashlib.sha256()
    for file in sorted(open_checkpoint().path.glob("*.safetensors")):
        found.update(file.read_bytes())
    return f"{open_checkpoint().path.name}-{found.hexdigest()[:12]}"


# contestant -> what makes its model, and the package that the cache names it after; the slowest comes last
CONVERTED: dict[str, tuple[Callable[[Model], Path], str]] = {
    "OpenVINO fp32": (openvino_fp32, "openvino"),
    "ONNX Runtime fp32": (onnx_fp32, "onnx"),
    "ONNX Runtime int8": (onnx_int8, "onnxruntime"),
    "OpenVINO int8": (openvino_int8, "nncf"),
}


def converted(name: str, model: Model) -> bool:
    """Is the contestant's model in the cache, or does it need none?"""
    name = "OpenVINO fp32" if name == "OpenVINO bf16" else name
    if name not in CONVERTED:
        return True
    try:
        return place(CONVERTED[name][1], model, name.split()[-1]).is_dir()
    except PackageNotFoundError:
        return False


def convert_within(seconds: float, names: Sequence[str], of: Sequence[Model]) -> dict[tuple[str, Model], str]:
    """Convert what is missing, in another process, which is stopped in time. What it has made by then is kept.

    Returns what failed, and why.
    """
    wanted = {f"{name}={model}": (name, model) for name in names for model in of if not converted(name, model)}
    if not wanted or seconds <= 0:
        return {}
    root = Path(__file__).parent.parent
    # while it imports, an exception could be swallowed, and there is nothing to remove yet
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    program += f"sys.path.append({str(root)!r}); from bench.conversions import main; main(sys.argv[1:])"
    with tempfile.TemporaryFile("w+") as failures:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, *wanted], stdout=failures, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # the process removes what it has not finished
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        failures.seek(0)
        lines = [line.rstrip("\n").split("\t") for line in failures if line.startswith(tuple(wanted))]
    return {wanted[line[0]]: line[-1] for line in lines}


def main(wanted: Sequence[str]) -> None:
    """wanted: for example "OpenVINO int8=768". A conversion that fails is printed, and the others are still made."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in wanted:
        name, _, model = each.partition("=")
        try:
            CONVERTED[name][0](int(model) if model.isdigit() else model)
        except Exception as error:
            print(each, f"{type(error).__name__}: {error}".splitlines()[0], sep="\t", flush=True)
