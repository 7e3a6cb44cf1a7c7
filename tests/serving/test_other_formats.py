"""vLLM's, Infinity's and the Open Inference Protocol's requests."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.serving.limits import Limits
from pfengine.serving.served import Answer, Served
from pfengine.serving.server import served

from .conftest import Client, port_of, running

GOOD, BAD = "a charming and often affecting journey", "the film is a dull mess"


@pytest.fixture(scope="module")
def both(sst2: pfengine.Engine, ranker: pfengine.Engine) -> Iterator[Client]:
    limits = Limits()
    models = {name: served(name, engine, limits) for name, engine in (("ranker", ranker), ("sst2", sst2))}
    with running(models, limits, api_key="secret") as server:
        yield Client(port_of(server))


def ask(client: Client, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    return client.ask(path, body, authorization="Bearer secret", **headers)


def test_vllm_classify(both: Client, sst2: pfengine.Engine) -> None:
    ids = sst2.tokenizer.encode([(0, BAD)])[0].ids.tolist()
    expected = sst2.predict([GOOD, BAD])
    for path in ("/classify", "/v1/classify"):
        for given in ([GOOD, BAD], [ids, ids], GOOD, ids):
            rows = {0: [GOOD, BAD], 1: [BAD, BAD], 2: [GOOD], 3: [BAD]}[
                [[GOOD, BAD], [ids, ids], GOOD, ids].index(given)
            ]
            status, found, _ = ask(both, path, {"model": "sst2", "input": given})
            assert status == 200
            assert set(found) == {"id", "object", "created", "model", "data", "usage"}
            assert (found["object"], found["model"]) == ("list", "sst2")
            assert found["id"].startswith("classify-")
            of = [[GOOD, BAD].index(row) for row in rows]
            assert [each["probs"] for each in found["data"]] == expected.probabilities[of].tolist()
            assert [each["exit_layer"] for each in found["data"]] == expected.exit_layers[of].tolist()
            assert [each["label"] for each in found["data"]] == [sst2.labels[i] for i in expected.label_ids[of]]
            assert [(each["index"], each["num_classes"]) for each in found["data"]] == [
                (i, 2) for i in range(len(rows))
            ]
    _, raw, _ = ask(both, "/classify", {"model": "sst2", "input": [GOOD], "use_activation": False})
    assert raw["data"][0]["probs"] == expected.logits[0].tolist()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_vllm_rerank(both: Client, ranker: pfengine.Engine, path: str) -> None:
    documents = ["one", "two words", GOOD, BAD]
    logits = ranker.predict([("query", text) for text in documents]).logits[:, 0]
    order = np.argsort(-logits, kind="stable").tolist()
    status, found, _ = ask(both, path, {"model": "ranker", "query": "query", "documents": documents, "top_n": 3})
    assert status == 200
    assert [each["index"] for each in found["results"]] == order[:3]
    np.testing.assert_allclose([each["relevance_score"] for each in found["results"]],
                               1 / (1 + np.exp(-logits[order[:3]])), rtol=1e-6)  # fmt: skip
    assert [each["document"]["text"] for each in found["results"]] == [documents[i] for i in order[:3]]
    assert {"id", "model", "usage"} <= set(found)


def test_vllm_score(both: Client, ranker: pfengine.Engine) -> None:
    first, second = ["a", "b c"], [GOOD, BAD]
    for one, two, pairs in (
        ("a", second, [("a", GOOD), ("a", BAD)]),
        (first, second, [("a", GOOD), ("b c", BAD)]),
        ("a", "x", [("a", "x")]),
    ):
        for names in (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")):
            status, found, _ = ask(
                both, "/score", {"model": "ranker", names[0]: one, names[1]: two, "use_activation": False}
            )
            assert status == 200
            assert [each["score"] for each in found["data"]] == ranker.predict(pairs).logits[:, 0].tolist()
            assert all(each["object"] == "score" for each in found["data"])
    for wrong in ({"queries": "a"}, {"queries": "a", "text_1": "b", "documents": "c"},
                  {"queries": ["a", "b"], "documents": ["c"] * 3}):  # fmt: skip
        assert ask(both, "/v1/score", wrong)[0] == 400


def test_tei_rerank(both: Client, ranker: pfengine.Engine) -> None:
    texts = ["one", "two words", GOOD]
    logits = ranker.predict([("query", text) for text in texts]).logits[:, 0]
    order = np.argsort(-logits, kind="stable").tolist()
    _, found, _ = ask(both, "/rerank", {"query": "query", "texts": texts, "raw_scores": True, "return_text": True})
    assert [(each["index"], each["score"], each["text"]) for each in found] == [(i, logits[i], texts[i]) for i in order]
    _, plain, _ = ask(both, "/rerank", {"query": "query", "texts": texts})
    assert [set(each) for each in plain] == [{"index", "score", "exit_layer"}] * 3
    assert all(0 <= each["score"] <= 1 for each in plain)
    assert ask(both, "/rerank", {"query": "query", "texts": []})[0] == 400


def test_large_logits_are_told_apart(both: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sigmoids are all 1."""

    async def answer(self: Served, rows: Any, *_: Any) -> Answer:
        logits = np.float32([[20], [30], [25]])
        return Answer(logits, np.array([5] * 3), None, {}, [4] * 3, 0.0, 0.0, 0.0)

    monkeypatch.setattr(Served, "answer", answer)
    texts = ["a", "b", "c"]
    tei = ask(both, "/rerank", {"query": "q", "texts": texts})[1]
    vllm = ask(both, "/v1/rerank", {"query": "q", "documents": texts})[1]["results"]
    infinity = ask(both, "/infinity/rerank", {"query": "q", "documents": texts})[1]["results"]
    for found in (tei, vllm, infinity):
        assert [each["index"] for each in found] == [1, 2, 0]


@pytest.mark.parametrize("path", ["/rerank", "/infinity/rerank"])
def test_infinity_rerank(both: Client, ranker: pfengine.Engine, path: str) -> None:
    texts = ["one", "two words", GOOD]
    body = {"query": "query", "documents": texts, "return_documents": True, "raw_scores": False, "top_n": 2,
            "model": "default/not-specified"}  # fmt: skip
    _, found, _ = ask(both, path, body)
    logits = ranker.predict([("query", text) for text in texts]).logits[:, 0]
    order = np.argsort(-logits, kind="stable").tolist()[:2]
    assert [(each["index"], each["document"]) for each in found["results"]] == [(i, texts[i]) for i in order]
    assert (found["object"], found["model"]) == ("rerank", "ranker")
    assert found["id"].startswith("infinity-")


def test_infinity_classify(both: Client, sst2: pfengine.Engine) -> None:
    _, found, _ = ask(both, "/classify", {"input": [GOOD, BAD], "model": "sst2", "raw_scores": False})
    expected = [[{"score": each["score"], "label": each["label"]} for each in row]
                for row in sst2.classify([GOOD, BAD], top_k=None)]  # fmt: skip
    assert (found["object"], found["data"]) == ("classify", expected)
    assert ask(both, "/infinity/classify", {"input": [GOOD], "model": "sst2"})[1]["data"] == expected[:1]
    _, raw, _ = ask(both, "/classify", {"input": [GOOD], "model": "sst2", "raw_scores": True})
    assert raw["data"][0][0]["score"] == sst2.predict([GOOD]).logits[0].max()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": "a", "model": "other"}),
        ("/v1/classify", {"input": [], "model": "sst2"}),
        ("/v1/classify", {"input": [[]], "model": "sst2"}),
        ("/v1/classify", {"input": [[99_999_999]], "model": "sst2"}),
        ("/v1/classify", {"input": [["a", 1]], "model": "sst2"}),
        ("/v1/classify", {"input": "a", "truncate_prompt_tokens": 7, "model": "sst2"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 10**30}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "model": "sst2"}),
        ("/rerank", {"query": "a", "documents": ["b"], "texts": 1, "raw_scores": 3}),
        ("/infinity/classify", {"input": ["a"] * 2049}),
        ("/infinity/rerank", {"query": "a", "documents": []}),
    ],
)  # fmt: skip
def test_errors_have_the_form_of_their_server(both: Client, path: str, body: Any) -> None:
    status, found, _ = ask(both, path, body)
    assert status in (400, 404, 422)
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert found["error"]["code"] == status


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/infinity/models"])
def test_models(both: Client, path: str) -> None:
    status, found, _ = ask(both, path)
    assert (status, [model["id"] for model in found["data"]]) == (200, ["ranker", "sst2"])
    if path != "/v1/models":
        assert [model["capabilities"] for model in found["data"]] == [["rerank"], ["classify"]]
        assert {model["owned_by"] for model in found["data"]} == {"infinity"}  # its client takes no other


@pytest.mark.parametrize("key", [None, "Bearer wrong", "secret", "Bearer secret2", "bearer secret", "Bearer sécret"])
def test_a_key_is_asked_for(both: Client, key: str | None) -> None:
    given = {} if key is None else {"authorization": key.encode().decode("latin-1")}
    for path, body in (("/predict", {"inputs": "a"}), ("/info", None), ("/v1/models", None), ("/docs", None)):
        status, found, _ = both.ask(path, body, **given)
        assert (status, found) == (401, b"")
    for path in ("/health", "/ping", "/", "/metrics", "/v2/health/live"):
        assert both.ask(path, **given)[0] == 200


def infer(*texts: str, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]} | more


def outputs(found: Any) -> dict[str, Any]:
    return {output["name"]: output for output in found["outputs"]}


@pytest.mark.parametrize("path", ["/v2/models/sst2/infer", "/v2/models/sst2/versions/1/infer"])
def test_open_inference(both: Client, sst2: pfengine.Engine, path: str) -> None:
    expected = sst2.predict([GOOD, BAD])
    status, found, _ = ask(both, path, infer(GOOD, BAD, id="seven"))
    assert status == 200
    assert (found["model_name"], found["id"]) == ("sst2", "seven")
    got = outputs(found)
    assert got["label"] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["positive", "negative"]}
    assert got["probabilities"]["shape"] == [2, 2]
    assert got["probabilities"]["data"] == expected.probabilities.ravel().tolist()
    assert got["exit_layer"]["data"] == expected.exit_layers.tolist()
    _, hurried, _ = ask(both, path, infer(GOOD, BAD, parameters={"threshold": 0.6}, outputs=[{"name": "logits"}]))
    assert outputs(hurried)["logits"]["data"] == sst2.predict([GOOD, BAD], threshold=0.6).logits.ravel().tolist()


def test_pairs_and_shapes(both: Client, sst2: pfengine.Engine) -> None:
    pair = {
        "inputs": [
            {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [[GOOD], [BAD]]},
            {"name": "text_pair", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
        ],
        "outputs": [{"name": "logits"}],
    }
    _, found, _ = ask(both, "/v2/models/sst2/infer", pair)
    assert outputs(found)["logits"]["data"] == sst2.predict([(GOOD, "a"), (BAD, "b")]).logits.ravel().tolist()


def binary(texts: list[str], outputs: list[dict[str, Any]] | None = None, **over: Any) -> tuple[bytes, str]:
    """A request in Triton's binary form, and the length of its JSON."""
    data = b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in texts))
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES",
              "parameters": {"binary_data_size": len(data)}} | over.pop("tensor", {})  # fmt: skip
    head = json.dumps({"inputs": [tensor]} | ({} if outputs is None else {"outputs": outputs})).encode()
    return head + over.pop("data", data), str(len(head))


def test_binary_tensors(both: Client, sst2: pfengine.Engine) -> None:
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "logits", "exit_layer")]
    body, length = binary([GOOD, BAD, "é"], wanted)
    status, raw, headers = ask(both, "/v2/models/sst2/infer", body, inference_header_content_length=length)
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    size = int(headers["inference-header-content-length"])
    described, data, values = outputs(json.loads(raw[:size])), raw[size:], {}
    for name, output in described.items():
        count = output["parameters"]["binary_data_size"]
        values[name], data = data[:count], data[count:]
    assert data == b""
    expected = sst2.predict([GOOD, BAD, "é"])
    assert values["logits"] == expected.logits.tobytes()
    assert values["exit_layer"] == expected.exit_layers.tobytes()
    assert values["label"][:12] == struct.pack("<I", 8) + b"positive"


@pytest.mark.parametrize(
    ("tensor", "data"),
    [
        ({"shape": [2**40]}, b""),
        ({"shape": [2**31, 2**33]}, b""),
        ({"shape": [-1]}, b""),
        ({"shape": [True]}, b"\x01\x00\x00\x00a"),
        ({"shape": [3]}, b"\x01\x00\x00\x00a"),
        ({"shape": [1]}, b"\xff\xff\xff\xffa"),  # a length that lies
        ({"shape": [1]}, b"\x00\x00\x00\x00extra"),
        ({"shape": [1]}, b"\x01\x00\x00"),
        ({"shape": [1]}, b"\x01\x00\x00\x00\xff"),  # not UTF-8
        ({"shape": [1], "parameters": {"binary_data_size": 10**9}}, b"\x01\x00\x00\x00a"),
        ({"shape": [1], "parameters": {"binary_data_size": -5}}, b"\x01\x00\x00\x00a"),
        ({"shape": [1], "parameters": {"binary_data_size": "5"}}, b"\x01\x00\x00\x00a"),
        ({"shape": [1], "datatype": "FP32"}, b"\x01\x00\x00\x00a"),
        ({"shape": [1, 1, 1]}, b"\x01\x00\x00\x00a"),
        ({"shape": [1], "data": ["a"]}, b"\x01\x00\x00\x00a"),
        ({"shape": []}, b"\x01\x00\x00\x00a"),
        ({"name": "n" * 300, "shape": [1]}, b"\x01\x00\x00\x00a"),
    ],
)  # fmt: skip
def test_tensors_that_lie(both: Client, tensor: dict[str, Any], data: bytes) -> None:
    sized = {"parameters": {"binary_data_size": len(data)}} | tensor
    body, length = binary([], tensor=sized, data=data)
    status, found, _ = ask(both, "/v2/models/sst2/infer", body, inference_header_content_length=length)
    assert status == 400
    assert set(found) == {"error"}


@pytest.mark.parametrize("length", ["-1", "999999", "x", "1e3", "9" * 30])
def test_headers_that_lie(both: Client, length: str) -> None:
    body, _ = binary([GOOD])
    assert ask(both, "/v2/models/sst2/infer", body, inference_header_content_length=length)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        infer(GOOD, parameters={"threshold": "x"}),
        infer(GOOD, parameters={"threshold": 10**400}),
        infer(GOOD, parameters={"deadline_ms": True}),
        infer(GOOD, outputs=[{"name": "nothing"}]),
        {"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["a"]}]},
        {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": [1]}]},
        {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES"}]},
        {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["x"]}] * 2},
        {"inputs": [{"name": n, "shape": [1], "datatype": "BYTES", "data": ["x"]} for n in ("a", "b")]},
    ],
)  # fmt: skip
def test_open_inference_refuses(both: Client, body: Any) -> None:
    status, found, _ = ask(both, "/v2/models/sst2/infer", body)
    assert (status, set(found)) == (400, {"error"})


def test_classification_extension(both: Client, sst2: pfengine.Engine) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 1}}]
    _, found, _ = ask(both, "/v2/models/sst2/infer", infer(GOOD, outputs=wanted))
    best = sst2.predict([GOOD]).probabilities[0].max()
    assert outputs(found)["probabilities"]["data"] == [f"{best:f}:1:positive"]


def test_open_inference_says_what_there_is(both: Client) -> None:
    assert ask(both, "/v2")[1]["name"] == "pfengine"
    assert both.ask("/v2/health/ready")[0] == both.ask("/v2/health/live")[0] == 200
    assert ask(both, "/v2/models/sst2/ready")[0] == 200
    assert ask(both, "/v2/models/sst2")[1]["outputs"][2]["shape"] == [-1, 2]
    for path in ("/v2/models/other", "/v2/models/sst2/versions/2", "/v2/models/other/ready"):
        status, found, _ = ask(both, path)
        assert (status, set(found)) == (404, {"error"})


def test_the_openapi_document_lists_all(both: Client) -> None:
    status, found, _ = ask(both, "/openapi.json")
    assert status == 200
    assert {"/predict", "/rerank", "/v1/classify", "/infinity/classify", "/v2/models/{model}/infer"} <= set(
        found["paths"]
    )
    schema = found["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "deadline_ms" in schema["properties"]
    assert "$ref" not in json.dumps(schema)
    assert ask(both, "/docs")[0] == 200
