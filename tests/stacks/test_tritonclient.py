"""NVIDIA's client asks `pfengine serve` as it asks Triton, with its binary tensors by default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pfengine

from .conftest import TEXTS, needs

pytestmark = needs("tritonclient")


def inputs(module: Any, texts: list[str], **options: Any) -> list[Any]:
    found = module.InferInput("text", [len(texts), 1], "BYTES")
    found.set_data_from_numpy(np.array(texts, object).reshape(-1, 1), **options)
    return [found]


def check(answer: Any, engine: pfengine.Engine, **options: Any) -> None:
    expected = engine.predict(TEXTS, **options)
    np.testing.assert_array_equal(answer.as_numpy("exit_layer"), expected.exit_layers)
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), expected.probabilities)
    np.testing.assert_array_equal(answer.as_numpy("score"), expected.probabilities.max(1))
    labels = answer.as_numpy("label").tolist()  # the client leaves those of JSON as text
    assert [label.decode() if isinstance(label, bytes) else label for label in labels] == [
        engine.labels[i] for i in expected.label_ids
    ]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("knobs", [{}, {"speedup": 2.5}, {"threshold": 0}])
def test_tritonclient_over_http(ports: tuple[int, int], engine: pfengine.Engine, binary: bool, knobs: Any) -> None:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{ports[0]}")
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("exit_layer", "probabilities", "score", "label")
    ]
    rows = inputs(triton, TEXTS, binary_data=binary)
    answer = client.infer("sst2", rows, outputs=wanted, request_id="7", parameters=knobs)
    assert answer.get_response()["id"] == "7"
    check(answer, engine, **knobs)
    if binary:
        check(client.infer("sst2", rows, parameters=knobs), engine, **knobs)  # outputs as the client asks by itself
    client.close()


def test_tritonclient_over_http_beside_infer(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{ports[0]}", concurrency=4)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sst2")
    assert not client.is_model_ready("none")
    assert [each["name"] for each in client.get_model_metadata("sst2")["inputs"]] == ["text", "text_pair"]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]

    best = triton.InferRequestedOutput("probabilities", class_count=1)
    ranked = client.infer("sst2", inputs(triton, TEXTS[:1]), outputs=[best]).as_numpy("probabilities")
    value, index, label = ranked.ravel()[0].decode().split(":")
    assert (label, int(index)) == ("positive", 1)
    assert float(value) == pytest.approx(engine.classify(TEXTS[:1])[0]["score"], abs=1e-6)

    pending = [client.async_infer("sst2", inputs(triton, TEXTS)) for _ in range(8)]
    for each in pending:
        check(each.get_result(), engine)
    for request, message in (
        (("none", inputs(triton, TEXTS)), "there is no model 'none'"),
        (("sst2", [triton.InferInput("text", [1], "INT64").set_data_from_numpy(np.zeros(1, np.int64))]), "BYTES"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(*request)
    client.close()


def test_tritonclient_over_grpc(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{ports[1]}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sst2")
    assert client.get_model_metadata("sst2").platform == "pfengine"
    for knobs in ({}, {"speedup": 2}, {"threshold": 0.0}):
        check(client.infer("sst2", inputs(triton, TEXTS), parameters=knobs), engine, **knobs)
    named = client.infer("sst2", inputs(triton, TEXTS), outputs=[triton.InferRequestedOutput("label")], request_id="9")
    assert named.get_response().id == "9"
    assert named.as_numpy("score") is None
    with pytest.raises(InferenceServerException, match="there is no model 'none'") as error:
        client.infer("none", inputs(triton, TEXTS))
    assert error.value.status() == "StatusCode.NOT_FOUND"
    client.close()
