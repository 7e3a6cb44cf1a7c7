"""What rounding costs: labels of bf16 and int8 engines against those of fp32, same weights, full depth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfengine

from .peers import Eager, FullDepth, open_checkpoint

Answers = Callable[[Sequence[str]], np.ndarray]  # texts -> logits [rows, labels]


def inputs(eager: Eager, text: str) -> dict[str, np.ndarray]:
    """One row, unpadded."""
    (row,) = eager.rows([text])
    ids = np.array([row])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def openvino_int8(eager: Eager, module: FullDepth, calibration: Sequence[str]) -> Answers:
    """NNCF's post-training quantisation with the preset for transformers. What stays in float runs in bf16."""
    import nncf
    import openvino

    example = {key: torch.from_numpy(value) for key, value in inputs(eager, calibration[0]).items()}
    rows = nncf.Dataset([inputs(eager, text) for text in calibration])
    model = nncf.quantize(
        openvino.convert_model(module, example_input=example),
        rows,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    return lambda texts: np.concatenate([compiled(inputs(eager, text))[0] for text in texts])


def onnxruntime_int8(eager: Eager, module: FullDepth, calibration: Sequence[str]) -> Answers:
    """Dynamic quantisation, weights per channel; needs no calibration rows."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    example = {key: torch.from_numpy(value) for key, value in inputs(eager, calibration[0]).items()}
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = Path(folder, "exact.onnx"), Path(folder, "int8.onnx")
        torch.onnx.export(
            module,
            tuple(example.values()),
            exact,
            input_names=list(example),
            output_names=["logits"],
            dynamic_axes={key: {0: "rows", 1: "tokens"} for key in example},
            dynamo=False,
        )
        quantize_dynamic(exact, rounded, weight_type=QuantType.QInt8, per_channel=True)
        session = onnxruntime.InferenceSession(rounded)
    return lambda texts: np.concatenate([session.run(None, inputs(eager, text))[0] for text in texts])


PEERS: dict[str, Callable[[Eager, FullDepth, Sequence[str]], Answers]] = {
    "OpenVINO int8": openvino_int8,
    "ONNX Runtime int8": onnxruntime_int8,
}


NAMES = ("pfengine fp32", "pfengine bf16", "pfengine int8", *PEERS)


def compare(
    texts: Sequence[str], labels: Sequence[int] | None, calibration: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One record per contestant: agreement with pfengine fp32 on `texts`, accuracy by `labels`; why others have none.

    pfengine's records also say what exits do: agreement and layer speed-up at the checkpoint's own threshold.
    """
    ckpt = open_checkpoint()
    exact = pfengine.load(ckpt.path, precision="fp32")
    full, exits = exact.predict(texts, criterion="never"), exact.predict(texts)
    truth = None if labels is None else np.asarray(labels)
    records: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}

    def record(name: str, ids: np.ndarray, **more: Any) -> None:
        agreement = float((ids == full.label_ids).mean())
        records.append(
            {
                "contestant": name,
                "rows": len(texts),
                "agreement": agreement,
                "accuracy": None if truth is None else float((ids == truth).mean()),
                "exits_agreement": None,
                "exits_accuracy": None,
                "layer_speedup": None,
                **more,
            }
        )

    for precision in ("fp32", "bf16", "int8"):
        try:
            engine = pfengine.load(ckpt.path, precision=precision)
        except pfengine.ConfigError as error:
            skipped[f"pfengine {precision}"] = str(error)
            continue
        early = engine.predict(texts)
        more: dict[str, Any] = {
            "exits_agreement": float((early.label_ids == exits.label_ids).mean()),
            "layer_speedup": early.layer_speedup,
        }
        if truth is not None:
            more["exits_accuracy"] = float((early.label_ids == truth).mean())
        record(f"pfengine {precision}", engine.predict(texts, criterion="never").label_ids, **more)
    eager = Eager(ckpt)
    module = FullDepth(eager).eval()
    with torch.inference_mode():
        for name, build in PEERS.items():
            try:
                answers = build(eager, module, calibration)
            except ImportError as error:
                skipped[name] = f"{error.name or error} is not installed"
                continue
            record(name, answers(texts).argmax(1))
    return records, skipped
