"""Starts `pfengine serve` on the bundled checkpoint, asks it through three clients, prints their answers, stops it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request

import grpc
from huggingface_hub import InferenceClient

from pfengine.serving.grpc_messages import MESSAGES, SERVICE

TEXTS = ["a charming and often affecting journey", "unflinchingly bleak and desperate"]


def main() -> int:
    command = [sys.executable, "-m", "pfengine", "serve", "sst2", "--port", "0", "--grpc-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        grpc_address, http = (_ready(server, scheme) for scheme in ("grpc", "http"))
        print(f"serving on http://{http} and grpc://{grpc_address}")
        print("\nText Embeddings Inference, at a layer speed-up of 4:")
        body = {"inputs": [[text] for text in TEXTS], "speedup": 4.0}
        request = urllib.request.Request(f"http://{http}/predict", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request) as response:
            for text, answer in zip(TEXTS, json.load(response), strict=True):
                print(f"  {answer[0]['label']} {answer[0]['score']:.3f}  {text}")
            print(f"  left after layers {response.headers['x-exit-layers']}")
        print("\nhuggingface_hub.InferenceClient:")
        for text in TEXTS:
            best = InferenceClient(model=f"http://{http}").text_classification(text)[0]
            print(f"  {best.label} {best.score:.3f}  {text}")
        print("\nOpen Inference Protocol over gRPC:")
        outputs = {output.name: output.contents for output in _infer(grpc_address).outputs}
        labels, layers = outputs["label"].bytes_contents, outputs["exit_layer"].int64_contents
        for text, label, layer in zip(TEXTS, labels, layers, strict=True):
            print(f"  {label.decode()} after layer {layer}  {text}")
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    print(f"\nstopped with exit code {code}")
    return code


def _ready(server: subprocess.Popen[str], scheme: str) -> str:
    """The address that the server says it is ready at."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(rf"ready: {scheme}://(\S+)", line):
            return found[1]
    raise SystemExit("the server did not start")


def _infer(address: str) -> object:
    text = {"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)]}
    text["contents"] = {"bytes_contents": [each.encode() for each in TEXTS]}
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        return ask(MESSAGES["ModelInferRequest"](model_name="sst2", inputs=[text]), timeout=30)


if __name__ == "__main__":
    sys.exit(main())
