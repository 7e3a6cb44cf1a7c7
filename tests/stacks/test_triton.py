"""The model repository for NVIDIA Triton. Its server is not on PyPI: a stub does what is documented of its module."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import cli_export
from pfengine.stacks import triton_repository

from . import triton_python_backend_utils as stub
from .conftest import blocks, needs, run, run_python

TEXTS = ["a charming journey", "bleak and dull", "it's slow -- very, very slow", "great", "a film"]
BAD, CANCELLED = stub.TritonError.INVALID_ARG, stub.TritonError.CANCELLED


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    assert triton_repository.export("sst2", out, precision="fp32") == out / "sst2"
    return out


def load_model(directory: Path, parameters: dict[str, str], kind: str = "CPU", device: str = "0") -> Any:
    """An instance of the repository's model, as the python backend makes it."""
    spec = importlib.util.spec_from_file_location("model", directory / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    described = {key: {"string_value": value} for key, value in parameters.items()}
    model.initialize({
        "model_config": json.dumps({"name": directory.name, "parameters": described}),
        "model_instance_kind": kind,
        "model_instance_device_id": device,
        "model_repository": str(directory),
        "model_version": "1",
        "model_name": directory.name,
    })  # fmt: skip
    return model


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.delitem(sys.modules, "pfengine.stacks.triton_model", raising=False)


@pytest.fixture
def model(repository: Path, backend: None) -> Iterator[Any]:
    found = load_model(repository / "sst2", {"precision": "fp32"})
    assert found.is_ready()
    yield found
    found.finalize()
    assert not hasattr(found, "predictor")


def request(texts: list[Any], pairs: list[Any] | None = None, shape: tuple[int, ...] = (-1, 1), **more: Any) -> Any:
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    inputs = [stub.Tensor("text", np.array(raw, object).reshape(shape))]
    if pairs is not None:
        inputs.append(stub.Tensor("text_pair", np.array([pair.encode() for pair in pairs], object).reshape(-1, 1)))
    parameters = more.pop("parameters", None)
    return stub.InferenceRequest(inputs, "" if parameters is None else json.dumps(parameters), **more)


def values(response: Any) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def check(response: Any, expected: list[Any], labels: tuple[str, ...]) -> None:
    found = values(response)
    assert {name: value.dtype for name, value in found.items()} == {
        "label": object, "score": np.float32, "probabilities": np.float32, "exit_layer": np.int64,
    }  # fmt: skip
    for name, width in {"label": 1, "score": 1, "probabilities": len(labels), "exit_layer": 1}.items():
        assert found[name].shape == (len(expected), width)
    for i, answer in enumerate(expected):
        assert found["label"][i, 0] == answer["label"].encode()
        assert found["score"][i, 0] == np.float32(answer["score"])
        assert found["exit_layer"][i, 0] == answer["exit_layer"]
        assert found["probabilities"][i, labels.index(answer["label"])] == found["score"][i, 0]
        assert found["probabilities"][i].sum() == pytest.approx(1, abs=1e-6)


def test_requests_share_one_call_of_the_engine_and_fail_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    answers = model.predictor.answers
    monkeypatch.setattr(
        model.predictor, "answers", lambda rows, top_k: calls.append(len(rows)) or answers(rows, top_k=top_k)
    )
    long = "slow " * 2000
    responses = stub.execute(model, [
        request(TEXTS[:2]),
        request([b"\xff\xfe"]),
        request([TEXTS[2]], cancelled=True),
        request([TEXTS[2]], parameters={"threshold": 0}),
        request(TEXTS[:1], [TEXTS[3]], parameters={"speedup": "2"}),
        request([TEXTS[3], long], shape=(2,)),
        request([TEXTS[3]], parameters={"threshold": "much"}),
        request(TEXTS[:2], TEXTS[:1]),
        request([TEXTS[3]], shape=(1, 1, 1)),
        request(TEXTS[:4], shape=(2, 2)),
        request([TEXTS[0]], parameters={"threshold": 0.1, "speedup": 2}),
        stub.InferenceRequest([]),
        request([]),
        request([TEXTS[4]]),
    ])  # fmt: skip
    assert calls == [9]
    engine = pfengine.load("sst2", precision="fp32")
    for place, rows, options in (
        (0, TEXTS[:2], {}),
        (3, [TEXTS[2]], {"threshold": 0}),
        (4, [(TEXTS[0], TEXTS[3])], {"speedup": 2}),
        (5, [TEXTS[3], long], {}),
        (8, [TEXTS[3]], {}),
        (12, [], {}),
        (13, [TEXTS[4]], {}),
    ):
        check(responses[place], engine.classify(rows, **options), engine.labels)
    assert values(responses[3])["exit_layer"] == [[engine.num_layers]]
    assert values(responses[4])["exit_layer"] < engine.num_layers
    wrong = {
        1: "row 0 of input 'text' has bytes that are not UTF-8",
        6: "parameter 'threshold' is 'much'; it must be a number",
        7: "'text' has 2 rows and 'text_pair' has 1",
        9: "input 'text' has the shape [2, 2]; expected [rows, 1]",
        10: "has 'threshold' and 'speedup'; leave one of them out",
        11: "input 'text' is missing",
    }
    for place, message in wrong.items():
        assert responses[place].error().message() == message
        assert responses[place].error().code() == BAD
    assert responses[2].error().code() == CANCELLED


def test_the_parameters_of_config_pbtxt_are_options(repository: Path, backend: None) -> None:
    model = load_model(repository / "sst2", {"truncation": "error", "threshold": "0", "max_length": "16", "note": "x"})
    short, long = stub.execute(model, [request(["dull"]), request(["dull", "slow " * 40])])
    assert values(short)["exit_layer"] == [[12]]
    assert "row 1: has more than 16 tokens" in long.error().message()
    with pytest.raises(pfengine.ConfigError, match=r"parameter 'threshold' of config.pbtxt is 'low'"):
        load_model(repository / "sst2", {"threshold": "low"})


def test_an_instance_runs_on_the_gpu_that_triton_gives_it(repository: Path, backend: None) -> None:
    for parameters in ({}, {"device": "cuda"}):
        with pytest.raises(pfengine.ConfigError, match="cuda:31"):  # no machine has so many
            load_model(repository / "sst2", parameters, kind="GPU", device="31")
    own = load_model(repository / "sst2", {"device": "cpu"}, kind="GPU", device="31")
    assert own.predictor.engine.device.type == "cpu"


def test_a_model_that_fails_fails_all_its_requests(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: Any, top_k: Any) -> None:
        raise pfengine.ConfigError("no")

    monkeypatch.setattr(model.predictor, "answers", fail)
    responses = stub.execute(model, [request(["a"]), request([b"\xff"]), request(["b"])])
    assert [response.error().code() for response in responses] == [stub.TritonError.INTERNAL, BAD, 1]


def test_what_is_there_is_left_alone(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="is there already; remove it, or give another name"):
        triton_repository.export("sst2", repository)
    for wrong in ({"name": "a/b"}, {"name": ".a"}, {"max_batch_size": 0}, {"max_queue_delay": float("nan")},
                  {"speedup": 100}, {"truncation": "no"}, {"batch_tokens": 1}):  # fmt: skip
        with pytest.raises(pfengine.ConfigError):
            triton_repository.export("sst2", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(pfengine.CheckpointError):
        triton_repository.export("/nowhere", tmp_path / "out")
    with pytest.raises(pfengine.ConfigError, match="cannot export to 'onnx'; it must be one of triton"):
        cli_export.export("onnx", "sst2", str(tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(pfengine.ConfigError, match="cannot write to"):
        triton_repository.export("sst2", tmp_path / "file")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in repository.iterdir()] == ["sst2"]


@needs("tritonclient")
def test_config_pbtxt_is_what_triton_reads(repository: Path, tmp_path: Path) -> None:
    import tritonclient.grpc.model_config_pb2 as messages
    from google.protobuf import text_format

    odd = 'entropy:0.3 "\\é\n'
    text = triton_repository.config_text("m", 3, 8, 250, 7, {"criterion": odd, "device": "cuda:0"})
    config = text_format.Parse(text, messages.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("m", "python", 8)
    assert [(each.name, each.optional, list(each.dims)) for each in config.input] == [
        ("text", False, [1]), ("text_pair", True, [1]),
    ]  # fmt: skip
    assert {each.data_type for each in config.input} == {messages.TYPE_STRING}
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [
        ("label", messages.TYPE_STRING, [1]),
        ("score", messages.TYPE_FP32, [1]),
        ("probabilities", messages.TYPE_FP32, [3]),
        ("exit_layer", messages.TYPE_INT64, [1]),
    ]
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 250
    assert batching.default_queue_policy.max_queue_size == 7
    assert batching.default_queue_policy.timeout_action == messages.ModelQueuePolicy.REJECT
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_GPU
    assert config.parameters["criterion"].string_value == odd
    written = text_format.Parse((repository / "sst2/config.pbtxt").read_text(), messages.ModelConfig())
    assert written.parameters["precision"].string_value == "fp32"
    assert (repository / "sst2" / written.output[2].label_filename).read_text() == "negative\npositive\n"


@needs("tritonclient")
def test_the_page(tmp_path: Path, backend: None, start: Any) -> None:
    """Its client asks our own server, which speaks the protocol."""
    (command,) = blocks("triton", "bash")
    assert run(["bash", "-c", command], tmp_path).strip() == "models/sst2"
    values(stub.execute(load_model(tmp_path / "models/sst2", {}), [request(TEXTS)])[0])
    start("pfengine serve sst2 --port 8000 --grpc-port -1", "http://127.0.0.1:8000/v2/health/ready")
    (code,) = blocks("triton", "python")
    assert run_python(code, tmp_path).strip() == "[b'positive' b'negative'] (2,)"
