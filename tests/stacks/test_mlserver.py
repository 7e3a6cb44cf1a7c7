"""A real MLServer with our runtime, asked over HTTP and gRPC."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pfengine

from .conftest import TEXTS, blocks, free_port, needs, run, serving

pytestmark = needs("mlserver")


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    (settings,), (command,), (ask,) = (blocks("mlserver", language) for language in ("json", "bash", "sh"))
    (tmp_path / "model-settings.json").write_text(settings)
    start(command.strip(), "http://127.0.0.1:8080/v2/health/ready")
    found = json.loads(run(["bash", "-c", ask], tmp_path))["outputs"][0]
    assert found["parameters"] == {"content_type": "hg_jsonlist"}
    assert [json.loads(each)["label"] for each in found["data"]] == ["positive", "negative"]


@pytest.fixture(scope="module", params=[0, 1])
def ports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Those of MLServer for HTTP and gRPC, without and with a worker process."""
    folder, http, grpc = tmp_path_factory.mktemp("mlserver"), free_port(), free_port()
    settings = {"debug": False, "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": None}
    (folder / "settings.json").write_text(json.dumps(settings | {"parallel_workers": request.param}))
    model = {
        "name": "m",
        "implementation": "pfengine.stacks.mlserver.PFEngineRuntime",
        "parameters": {"uri": "sst2", "version": "v7", "extra": {"precision": "fp32"}},
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    with serving("mlserver start .", f"http://127.0.0.1:{http}/v2/health/ready", folder):
        yield http, grpc


def ask(port: int, texts: Any, name: str = "args", pairs: Any = None, **parameters: Any) -> tuple[int, Any]:
    """Status and rows, or the error."""
    inputs = [{"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts}]
    if pairs is not None:
        inputs.append({"name": "text_pair", "shape": [len(pairs)], "datatype": "BYTES", "data": pairs})
    raw = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/m/infer", raw, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output", "BYTES", [len(output["data"]), 1])
    return 200, [json.loads(each) for each in output["data"]]


def check(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one["label"], one["exit_layer"]) == (other["label"], other["exit_layer"])
        assert one["score"] == other["score"]


def test_concurrent_requests_keep_their_own_thresholds(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    texts = [*TEXTS, "it takes a while to get going", "the film is slow but rewarding"]
    knobs: list[dict[str, float]] = [{}, {"threshold": 0.0}, {"speedup": 2.5}, {"threshold": 0.6}] * 6
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda each: ask(ports[0], texts, **each), knobs))
    for each, (status, found) in zip(knobs, answers, strict=True):
        assert status == 200
        check(found, engine.classify(texts, **each))  # type: ignore[arg-type]
    assert len({str(found) for _, found in answers}) > 2


@pytest.mark.parametrize("name", ["args", "array_inputs", "text"])
def test_names_of_the_input_and_pairs(ports: tuple[int, int], engine: pfengine.Engine, name: str) -> None:
    check(ask(ports[0], TEXTS, name)[1], engine.classify(TEXTS))
    pairs = [(text, "a film") for text in TEXTS]
    check(ask(ports[0], TEXTS, name, ["a film"] * 3)[1], engine.classify(pairs))


def raw(port: int, *inputs: dict[str, Any], **parameters: Any) -> Any:
    """The rows of an answer, or an error."""
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/m/infer", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return [json.loads(each) for each in json.load(response)["outputs"][0]["data"]]
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]


def tensor(name: str, *data: Any, kind: str | None = None, datatype: str = "BYTES") -> dict[str, Any]:
    found = {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}
    return found if kind is None else found | {"parameters": {"content_type": kind}}


def test_what_the_pipeline_of_the_hugging_face_runtime_takes(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    """As mlserver-huggingface 1.7.1 answers them with transformers 4.53, beside exit_layer."""
    port, logits = ports[0], engine.predict(TEXTS).logits
    pair = {"text": TEXTS[0], "text_pair": "a film"}
    values = [json.dumps(TEXTS[1]), json.dumps(pair)]
    expected = engine.classify([TEXTS[1], (TEXTS[0], "a film")])
    check(raw(port, tensor("array_inputs", *values, kind="hg_jsonlist")), expected)
    check(raw(port, tensor("args", *values), content_type="hg_json"), expected)
    for top_k in (
        tensor("top_k", 2, datatype="INT64"),
        tensor("top_k", 2, datatype="INT64", kind="raw"),
        tensor("top_k", "2", kind="hg_json"),
    ):
        found = raw(port, tensor("array_inputs", *TEXTS), top_k)
        for each, best in zip(found, engine.classify(TEXTS, top_k=2), strict=True):
            check(each, best)
    (one,) = raw(port, tensor("args", TEXTS[0]), tensor("top_k", 1, datatype="INT64"))
    assert len(one) == 1
    for function in (tensor("function_to_apply", "none"), tensor("function_to_apply", '"none"', kind="hg_json")):
        found = raw(port, tensor("array_inputs", *TEXTS), function)
        assert [each["score"] for each in found] == logits.max(-1).tolist()


def test_options_that_are_refused(ports: tuple[int, int]) -> None:
    texts = tensor("array_inputs", *TEXTS)
    for inputs, message in (
        ([texts, tensor("top_k", 0, datatype="INT64")], "top_k"),
        ([texts, tensor("top_k", 1, 2, datatype="INT64")], "input 'top_k' must have one value"),
        ([texts, tensor("function_to_apply", "tanh")], "function_to_apply"),
        ([texts, tensor("padding", "true", kind="hg_json")], "give one input of texts"),
        ([tensor("args", "{", kind="hg_json")], "not JSON"),
        ([tensor("args", "7", kind="hg_json")], "is of type int"),
    ):
        assert message in raw(ports[0], *inputs), inputs


def test_bad_requests(ports: tuple[int, int]) -> None:
    for texts, options, status, message in (
        ([], {}, 400, "the request has no rows"),
        (TEXTS, {"pairs": ["a"]}, 400, "there are 3 texts, and 1 in 'text_pair'"),
        (TEXTS, {"threshold": "low"}, 400, "parameter 'threshold' must be a number"),
        (TEXTS, {"threshold": 0.1, "speedup": 2}, 400, "threshold"),
        (TEXTS, {"speedup": 100}, 400, "speedup"),
        (TEXTS, {"name": "text_pair"}, 400, "give one input of texts, such as 'args', and for pairs 'text_pair'"),
    ):
        found = ask(ports[0], texts, **options)  # type: ignore[arg-type]
        assert found[0] == status
        assert message in found[1]
    assert ask(ports[0], ["a"])[0] == 200


def test_grpc_and_bytes_that_are_no_text(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import grpc
    from mlserver.codecs import StringCodec
    from mlserver.grpc import dataplane_pb2 as messages
    from mlserver.grpc.converters import ModelInferResponseConverter
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    def request(texts: list[bytes]) -> Any:
        tensor = messages.ModelInferRequest.InferInputTensor(
            name="args", datatype="BYTES", shape=[len(texts)],
            contents=messages.InferTensorContents(bytes_contents=texts),
        )  # fmt: skip
        return messages.ModelInferRequest(model_name="m", inputs=[tensor])

    with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        answer = ModelInferResponseConverter.to_types(stub.ModelInfer(request([text.encode() for text in TEXTS])))
        check([json.loads(each) for each in StringCodec.decode_output(answer.outputs[0])], engine.classify(TEXTS))
        assert answer.model_version == "v7"
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(request([b"\xff"]))
        assert "has bytes that are not UTF-8" in error.value.details()
        described = stub.ModelMetadata(messages.ModelMetadataRequest(name="m"))
        assert [each.name for each in (*described.inputs, *described.outputs)] == ["args", "output"]


def load(**settings: Any) -> Any:
    import asyncio

    from mlserver.settings import ModelSettings

    from pfengine.stacks.mlserver import PFEngineRuntime

    found = PFEngineRuntime(ModelSettings(name="m", implementation=PFEngineRuntime, **settings))
    asyncio.run(found.load())
    return found


def test_settings_that_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({"max_batch_size": 8, "parameters": {"uri": "sst2"}}, "max_batch_size of model 'm' is 8; leave it out"),
        ({}, "parameters.uri of model 'm' is missing"),
        ({"parameters": {"uri": "sst2", "extra": {"treshold": 1}}}, "there is no option 'treshold'"),
    ):
        with pytest.raises(pfengine.ConfigError, match=message):
            load(**settings)
    with pytest.raises(pfengine.CheckpointError):
        load(parameters={"uri": str(tmp_path)})


def test_a_row_that_fails_alone_and_rows_that_are_too_long() -> None:
    import asyncio

    from mlserver.codecs import StringCodec
    from mlserver.errors import MLServerError
    from mlserver.types import InferenceRequest

    model = load(parameters={"uri": "sst2", "extra": {"truncation": "error", "max_length": 16}})

    async def predict(*texts: str) -> list[Any]:
        asked = InferenceRequest(inputs=[StringCodec.encode_input("args", list(texts))])
        (output,) = (await model.predict(asked)).outputs
        return [json.loads(each) for each in output.data.root]

    async def both() -> None:
        good, bad = await predict("good", "slow " * 50)
        assert good["label"] == "positive"
        assert bad == {"error": "must have at most 16 tokens; it has more"}
        with pytest.raises(MLServerError, match="must have at most 16 tokens") as error:
            await predict("slow " * 50)
        assert error.value.status_code == 400
        assert await model.unload()

    asyncio.run(both())
