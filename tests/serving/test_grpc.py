"""The Open Inference Protocol over gRPC, asked by a client that knows nothing of the server's code but its messages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import pfengine
from pfengine.serving.grpc_messages import MESSAGES, SERVICE
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, running

GOOD, BAD = "a charming and often affecting journey", "the film is a dull mess"


@pytest.fixture(scope="module")
def channel(sst2: pfengine.Engine) -> Iterator[grpc.Channel]:
    limits = Limits(max_client_batch_size=4, payload_limit=20_000)
    with (
        running({"sst2": served("sst2", sst2, limits)}, limits, grpc=True, api_key="secret") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as made,
    ):
        yield made


def call(channel: grpc.Channel, method: str, key: str | None = "secret", **fields: Any) -> Any:
    ask = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=MESSAGES[f"{method}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{method}Response"].FromString,
    )
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    return ask(MESSAGES[f"{method}Request"](**fields), timeout=WAIT, metadata=metadata)


def refused(channel: grpc.Channel, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(channel, method, **fields)
    return error.value.code(), error.value.details()


def tensor(*texts: str, **over: Any) -> dict[str, Any]:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "contents": contents} | over


def test_typed_contents(channel: grpc.Channel, sst2: pfengine.Engine) -> None:
    found = call(channel, "ModelInfer", model_name="sst2", id="7", inputs=[tensor(GOOD, BAD)])
    expected = sst2.predict([GOOD, BAD])
    outputs = {output.name: output for output in found.outputs}
    assert (found.model_name, found.id) == ("sst2", "7")
    assert list(outputs["label"].contents.bytes_contents) == [b"positive", b"negative"]
    assert list(outputs["probabilities"].contents.fp32_contents) == expected.probabilities.ravel().tolist()
    assert list(outputs["probabilities"].shape) == [2, 2]
    assert list(outputs["exit_layer"].contents.int64_contents) == expected.exit_layers.tolist()


def test_raw_contents_and_parameters(channel: grpc.Channel, sst2: pfengine.Engine) -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in (GOOD, BAD))
    found = call(
        channel, "ModelInfer", model_name="sst2", inputs=[tensor(shape=[2], contents=None)], raw_input_contents=[raw],
        outputs=[{"name": "logits"}, {"name": "label"}], parameters={"threshold": {"double_param": 0.6}},
    )  # fmt: skip
    assert found.raw_output_contents[0] == sst2.predict([GOOD, BAD], threshold=0.6).logits.tobytes()
    assert found.raw_output_contents[1][:12] == struct.pack("<I", 8) + b"positive"
    assert not found.outputs[0].HasField("contents")


def test_what_there_is(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", key=None).live
    assert call(channel, "ServerReady", key=None).ready
    assert call(channel, "ModelReady", name="sst2").ready
    assert call(channel, "ServerMetadata").name == "pfengine"
    metadata = call(channel, "ModelMetadata", name="sst2", version="1")
    assert [(each.name, each.datatype) for each in metadata.inputs] == [("text", "BYTES"), ("text_pair", "BYTES")]
    assert {each.name: list(each.shape) for each in metadata.outputs}["probabilities"] == [-1, 2]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model_name": "other", "inputs": [tensor("a")]}, grpc.StatusCode.NOT_FOUND),
        ({"model_name": "sst2", "model_version": "9", "inputs": [tensor("a")]}, grpc.StatusCode.NOT_FOUND),
        ({"model_name": "sst2"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a", shape=[2])]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a", shape=[-1])]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a", shape=[2**40, 2**40])]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a", datatype="FP32")]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a")] * 9}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor(*"abcde")]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "sst2", "inputs": [tensor("a", name="n" * 300)]}, grpc.StatusCode.INVALID_ARGUMENT),
        (
            {"model_name": "sst2", "inputs": [tensor("a")], "raw_input_contents": [b"", b""]},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            {"model_name": "sst2", "inputs": [tensor(shape=[1], contents=None)], "raw_input_contents": [b"\xff" * 4]},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            {"model_name": "sst2", "inputs": [tensor("a")], "parameters": {"speedup": {"string_param": "2"}}},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ({"model_name": "sst2", "inputs": [tensor("x" * 30_000)]}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)  # fmt: skip
def test_what_is_refused(channel: grpc.Channel, fields: dict[str, Any], code: grpc.StatusCode) -> None:
    found, details = refused(channel, "ModelInfer", **fields)
    assert found == code, details
    assert "Traceback" not in details
    assert "unexpected" not in details.lower()
    assert call(channel, "ModelInfer", model_name="sst2", inputs=[tensor(GOOD)]).outputs


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_key_is_asked_for(channel: grpc.Channel, key: str | None) -> None:
    for method in ("ModelInfer", "ServerMetadata", "ModelReady"):
        assert refused(channel, method, key=key)[0] == grpc.StatusCode.UNAUTHENTICATED
