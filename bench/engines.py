"""The contestants at full depth: pfengine and its peers, all on one checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch

import pfengine

from . import conversions
from .interleave import Rounds
from .knobs import CONTESTANTS, BatchSize, Model
from .rows import PEERS_STREAM, Row, fixed_batches

Call = Callable[[list[Row]], np.ndarray]  # a batch of rows -> logits [rows, labels]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE = "transformers fp32"  # the others must have its logits
FP32_TOLERANCE = 2e-4  # of a logit
TOLERANCE = {"bf16": 0.05, "int8": 0.15}  # as a share of the range of all logits; 0.012 and 0.06 were seen
MOST_CHARACTERS = 240  # in an error message
SKIPPED: dict[str, str] = {}  # contestant -> why it is missing
REFUSED: dict[str, str] = {}  # contestant -> how its answers differ


@dataclass(frozen=True)
class Contestant:
    name: str
    call: Call
    streams: bool  # does it make batches by itself?

    def run(self, rows: Sequence[Row], batch_size: BatchSize, laps: list[float] | None = None) -> np.ndarray:
        """Logits in the rows' order, one call per batch. The seconds of each call are appended to `laps`."""
        if batch_size is None and self.streams:
            return self.call(list(rows))
        parts, order = [], []
        for batch in fixed_batches(rows, batch_size or PEERS_STREAM):
            start = perf_counter()
            parts.append(self.call([rows[i] for i in batch]))
            if laps is not None:
                laps.append(perf_counter() - start)
            order += batch
        logits = np.concatenate(parts)
        out = np.empty_like(logits)
        out[order] = logits
        return out


def precision(name: str) -> str:
    return name.split()[-1]


def openvino_peer(name: str) -> str:
    """The name of OpenVINO in the same precision, which ratios are against."""
    return f"OpenVINO {precision(name)}"


def absent(name: str) -> str | None:
    """Why it is missing: it was not asked for, or a package that it needs is not installed."""
    if name != REFERENCE and not name.startswith(CONTESTANTS):
        return "left out by PFENGINE_BENCH_CONTESTANTS"
    for package in _MAKERS[name][0]:
        try:
            import_module(package)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == package
            return f"{package} is not installed" if missing else f"{package}: {first_line(error)}"
    return None


@functools.cache
def contestant(name: str, model: Model) -> Contestant | None:
    """The contestant; None, and a line in SKIPPED, where it cannot run here."""
    if why := absent(name):
        SKIPPED[name] = why
        return None
    try:
        call = _MAKERS[name][1](model, precision(name))
        call([[1, 2, 3], [4, 5]])  # compiling at the first call may fail
    except Exception as error:
        # for pfengine, only a precision that needs the compiled kernels may be missing
        if name == REFERENCE or (name.startswith("pfengine") and not isinstance(error, pfengine.ConfigError)):
            raise
        SKIPPED[name] = first_line(error)
        return None
    return Contestant(name, call, streams=name.startswith("pfengine"))


def contestants(model: Model, names: Sequence[str] | None = None) -> dict[str, Contestant]:
    found = {name: contestant(name, model) for name in names or NAMES}
    return {name: each for name, each in found.items() if each is not None}


def differences(answers: dict[str, Any], reference: str = REFERENCE) -> dict[str, str]:
    """Contestants whose logits differ from the reference's, and by how much."""
    if reference not in answers:
        return dict.fromkeys(answers, f"there is no {reference} to compare logits with")
    expected = answers[reference]
    found = {}
    for name, logits in answers.items():
        allowed = TOLERANCE.get(precision(name), 0.0) * np.ptp(expected) or FP32_TOLERANCE
        error = float(np.abs(logits - expected).max())
        if not error <= allowed:  # also for nan
            found[name] = f"logits differ from {reference} by {error:.2g}, more than {allowed:.2g}"
    return found


def disagreeing(answers: dict[str, Any]) -> set[str]:
    """Contestants whose logits differ from transformers', with a line each in REFUSED."""
    found = differences(answers)
    REFUSED.update(found)
    return set(found)


def beside_peers(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Of each contestant that was timed: the fastest peer, and how many times as fast as it and as OpenVINO it is."""
    peers = [name for name in rounds.seconds if not name.startswith("pfengine")]
    best = min(peers, key=rounds.median)
    return {
        name: {
            "best_peer": best,
            "speedup_over_best_peer": rounds.speedup(name, best),
            "speedup_over_openvino": rounds.speedup(name, openvino_peer(name)),
        }
        for name in rounds.seconds
    }


def stop_unless_timed(name: str, records: dict[str, Any]) -> None:
    """End the test of a contestant without a record: skipped where it cannot run, failed where its answers differ."""
    if name not in records:
        if name in REFUSED:
            pytest.fail(REFUSED[name])
        pytest.skip(SKIPPED[name])


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:MOST_CHARACTERS]


def _transformers(model: Model, precision: str) -> Call:
    return _torch_call(model, conversions.load_transformers(model, DTYPES[precision]))


def _compiled(model: Model, precision: str) -> Call:
    compiled = torch.compile(conversions.load_transformers(model, DTYPES[precision]), dynamic=True)
    return _torch_call(model, compiled)


def _torch_call(model: Model, module: Any) -> Call:
    @torch.inference_mode()
    def call(rows: list[Row]) -> np.ndarray:
        batch = {name: torch.from_numpy(array) for name, array in conversions.batch_of(model, rows).items()}
        out = module(**batch)
        return getattr(out, "logits", out).float().numpy()

    return call


def _onnx_runtime(model: Model, precision: str) -> Call:
    import onnxruntime

    path = (conversions.onnx_int8 if precision == "int8" else conversions.onnx_fp32)(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, conversions.batch_of(model, rows))[0]


def _openvino(model: Model, precision: str) -> Call:
    import openvino

    path = (conversions.openvino_int8 if precision == "int8" else conversions.openvino_fp32)(model)
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # OpenVINO is faster in bf16 also between its int8 products
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
    }
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    # copied: the next call overwrites what the request returns
    return lambda rows: request.infer(conversions.batch_of(model, rows))[0].copy()


def _pfengine(model: Model, precision: str) -> Call:
    engine = pfengine.load(conversions.source(model), precision=precision)

    def call(rows: list[Row]) -> np.ndarray:
        # no batch size: the rows of a fixed batch are few enough to go through a layer together
        return engine.predict([{"input_ids": row} for row in rows], criterion="never").logits

    return call


_MAKERS: dict[str, tuple[tuple[str, ...], Callable[[Model, str], Call]]] = {
    "transformers fp32": (("transformers",), _transformers),
    "transformers bf16": (("transformers",), _transformers),
    "torch.compile fp32": (("transformers",), _compiled),
    "ONNX Runtime fp32": (("transformers", "onnx", "onnxruntime"), _onnx_runtime),
    "ONNX Runtime int8": (("transformers", "onnx", "onnxruntime"), _onnx_runtime),
    "OpenVINO fp32": (("transformers", "openvino"), _openvino),
    "OpenVINO bf16": (("transformers", "openvino"), _openvino),
    "OpenVINO int8": (("transformers", "openvino", "nncf"), _openvino),
    "pfengine fp32": ((), _pfengine),
    "pfengine bf16": ((), _pfengine),
    "pfengine int8": ((), _pfengine),
}
NAMES = tuple(_MAKERS)
