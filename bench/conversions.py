"""The checkpoint in the peers' formats: each made once, kept beside it, and never half there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .knobs import CACHE
from .models import VOCABULARY, random_checkpoint
from .rows import make_rows, padded

CALIBRATION_ROWS = 30
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # in the order of BertForSequenceClassification's arguments


def source(hidden: int) -> Path:
    """The one checkpoint that all contestants run."""
    return random_checkpoint(CACHE, hidden, "classifier")


def load_transformers(hidden: int, dtype: torch.dtype) -> Any:
    from transformers import BertForSequenceClassification

    path = source(hidden)
    model = BertForSequenceClassification.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
    )
    return model.eval()


def openvino_fp32(hidden: int) -> Path:
    def make(directory: Path) -> None:
        import openvino

        model = openvino.convert_model(load_transformers(hidden, torch.float32), example_input=_example())
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    return kept("openvino", hidden, "fp32", make) / "model.xml"


def openvino_int8(hidden: int) -> Path:
    """Quantised after training by NNCF, as for any transformer."""

    def make(directory: Path) -> None:
        import nncf
        import openvino

        plain = openvino.Core().read_model(openvino_fp32(hidden))
        rows = [padded([row]) for row in make_rows(CALIBRATION_ROWS, seed=2)]
        model = nncf.quantize(
            plain, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_ROWS
        )
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    return kept("nncf", hidden, "int8", make) / "model.xml"


def onnx_fp32(hidden: int) -> Path:
    def make(directory: Path) -> None:
        example = _example()
        torch.onnx.export(
            load_transformers(hidden, torch.float32),
            tuple(example[name] for name in INPUTS),
            directory / "model.onnx",
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in INPUTS},
            dynamo=False,
        )

    return kept("onnx", hidden, "fp32", make) / "model.onnx"


def onnx_int8(hidden: int) -> Path:
    """Quantised by ONNX Runtime: weights beforehand, a scale a channel; activations as they come."""

    def make(directory: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx_fp32(hidden), directory / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)

    return kept("onnxruntime", hidden, "int8", make) / "model.onnx"


def _example() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def kept(package: str, hidden: int, precision: str, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, by a name that tells which release of the package filled it."""
    path = CACHE / f"{package}-{version(package)}-{precision}-{hidden}"
    if not path.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=CACHE))
        try:
            make(temporary)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path
