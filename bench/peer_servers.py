"""The servers that `bench.serving` measures beside `pfengine serve`, each as its own guide has it.

    python -m bench.peer_servers "FastAPI + ONNX Runtime int8" 8080

All but MLServer take {"inputs": [[text], ...]} at /predict and answer with a list of labels and scores per text. All
run the bundled checkpoint at full depth, on as many threads as torch has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .conversions import INPUTS, load_transformers, onnx_int8, openvino_int8
from .knobs import BUNDLED
from .peers import open_checkpoint
from .rows import padded

Call = Callable[[Sequence[str]], list[list[dict[str, Any]]]]
MAX_BATCH, BATCH_SECONDS = 32, 0.005  # of servers that batch


def classifier(run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Call:
    """Texts to the labels of each, best first: tokenizers, one padded batch, softmax."""
    ckpt = open_checkpoint()
    labels = [ckpt.config["id2label"][str(i)] for i in range(len(ckpt.config["id2label"]))]

    def call(texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        logits = run(padded(ckpt.rows(texts)))
        raised = np.exp(logits - logits.max(1, keepdims=True))
        scores = raised / raised.sum(1, keepdims=True)
        return [[{"label": labels[i], "score": float(row[i])} for i in np.argsort(-row)] for row in scores]

    return call


def with_transformers() -> Call:
    model = load_transformers(BUNDLED, torch.float32)

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(**{name: torch.from_numpy(batch[name]) for name in INPUTS}).numpy()
        return logits

    return classifier(run)


def with_onnx_runtime() -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx_int8(BUNDLED), options, providers=["CPUExecutionProvider"])
    return classifier(lambda batch: session.run(None, batch)[0])


def with_openvino() -> Call:
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"})
    compiled = core.compile_model(openvino_int8(BUNDLED), "CPU")

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        request = compiled.create_infer_request()  # one per call: FastAPI calls from several threads
        logits: np.ndarray = request.infer([batch[name] for name in INPUTS])[0]
        return logits

    return classifier(run)


def fastapi(call: Call, port: int) -> None:
    """As FastAPI's guide has it: a function that is no coroutine, which runs in a pool of threads."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        inputs: list[list[str]]

    app = FastAPI()
    globals()["Body"] = Body  # FastAPI looks up annotations, which are text here

    @app.post("/predict")
    def predict(body: Body) -> list[list[dict[str, Any]]]:
        return call([texts[0] for texts in body.inputs])

    uvicorn.run(app, port=port, log_level="warning")


def floor(port: int) -> None:
    """uvicorn and Starlette with nothing behind them: the body is read, and the same bytes are always sent."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    answer = json.dumps([[{"label": "positive", "score": 0.99}, {"label": "negative", "score": 0.01}]]).encode()

    async def predict(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def litserve(port: int) -> None:
    """LitServe with its own batching."""
    import litserve as ls

    from .litserve_api import Classifier

    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, log_level="warning", generate_client_file=False)


def mlserver(port: int) -> None:
    """MLServer with its adaptive batching, in one process; its settings are files."""
    import tempfile

    directory = Path(tempfile.mkdtemp())
    root = str(Path(__file__).parent.parent)
    (directory / "runtime.py").write_text(
        f"import sys; sys.path.insert(0, {root!r})\nfrom bench.mlserver_runtime import Classifier\n"
    )
    settings = {
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": 0,
        "debug": False,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "classifier", "implementation": "runtime.Classifier",
        "max_batch_size": MAX_BATCH, "max_batch_time": BATCH_SECONDS,
    }  # fmt: skip
    (directory / "model-settings.json").write_text(json.dumps(model))
    os.execvp("mlserver", ["mlserver", "start", str(directory)])


SERVERS: dict[str, Callable[[int], None]] = {
    "floor": floor,
    "FastAPI + ONNX Runtime int8": lambda port: fastapi(with_onnx_runtime(), port),
    "FastAPI + OpenVINO int8": lambda port: fastapi(with_openvino(), port),
    "LitServe + transformers": litserve,
    "MLServer + transformers": mlserver,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
