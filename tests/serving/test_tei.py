"""Text Embeddings Inference's interface and InferenceClient, quirk by quirk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pfengine

from .conftest import Client

GOOD, BAD = "a charming and often affecting journey", "the film is a dull mess"


def best_first(engine: pfengine.Engine, row: Any, **options: Any) -> list[dict[str, Any]]:
    (found,) = engine.classify([row], top_k=None, **options)
    return [{"score": each["score"], "label": each["label"]} for each in found]


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
@pytest.mark.parametrize(
    ("inputs", "rows", "nested"),
    [
        (GOOD, [GOOD], False),
        ([GOOD], [GOOD], False),
        ([GOOD, BAD], [(GOOD, BAD)], False),  # one pair, not two texts
        ([[GOOD]], [GOOD], True),
        ([[GOOD], [GOOD, BAD], [BAD]], [GOOD, (GOOD, BAD), BAD], True),
    ],
)
def test_forms_of_inputs(
    client: Client, sst2: pfengine.Engine, path: str, inputs: Any, rows: list[Any], nested: bool
) -> None:
    status, found, headers = client.ask(path, {"inputs": inputs})
    expected = [best_first(sst2, row) for row in rows]
    assert (status, found) == (200, expected if nested else expected[0])
    assert list(found[0][0] if nested else found[0]) == ["score", "label"]
    layers = sst2.predict(rows).exit_layers.tolist()
    assert headers["x-exit-layers"] == ",".join(map(str, layers))
    assert float(headers["x-layer-speedup"]) == pytest.approx(12 * len(layers) / sum(layers), abs=1e-3)


@pytest.mark.parametrize(
    ("knobs", "options"),
    [
        ({"threshold": 0.6}, {"threshold": 0.6}),
        ({"speedup": 3}, {"speedup": 3.0}),
        ({"criterion": "patience:2"}, {"criterion": "patience:2"}),
        ({"criterion": "confidence", "threshold": 0.95}, {"criterion": "confidence", "threshold": 0.95}),
        ({"deadline_ms": 60_000}, {}),
    ],
)
def test_knobs(client: Client, sst2: pfengine.Engine, knobs: dict[str, Any], options: dict[str, Any]) -> None:
    status, found, headers = client.ask("/predict", {"inputs": [[GOOD], [BAD]], **knobs})
    assert (status, found) == (200, [best_first(sst2, row, **options) for row in (GOOD, BAD)])
    assert headers["x-exit-layers"] == ",".join(map(str, sst2.predict([GOOD, BAD], **options).exit_layers))


def test_raw_scores(client: Client, sst2: pfengine.Engine) -> None:
    _, found, _ = client.ask("/predict", {"inputs": GOOD, "raw_scores": True})
    logits = sst2.predict([GOOD]).logits[0]
    assert [each["score"] for each in found] == sorted(logits.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("body", "status", "kind", "text"),
    [
        ({"inputs": ""}, 400, "Empty", "cannot be empty"),
        ({"inputs": [[""], [GOOD]]}, 400, "Empty", "cannot be empty"),
        ({"inputs": []}, 422, "Validation", "inputs"),
        ({"inputs": [[]]}, 422, "Validation", "inputs"),
        ({"inputs": [GOOD, BAD, GOOD]}, 422, "Validation", "inputs"),
        ({"inputs": 7}, 422, "Validation", "inputs"),
        ({}, 422, "Validation", "inputs"),
        ([], 422, "Validation", "the body"),
        ({"inputs": [[GOOD]] * 5}, 422, "Validation", r"batch size 5 > maximum allowed batch size 4"),
        ({"inputs": "word " * 600, "truncate": False}, 422, "Validation", "at most 512 tokens"),
        ({"inputs": GOOD, "truncate": "yes"}, 422, "Validation", "truncate"),
        ({"inputs": GOOD, "truncation_direction": "left"}, 422, "Validation", "other side"),
        ({"inputs": GOOD, "threshold": "0.3"}, 422, "Validation", "threshold"),
        ({"inputs": GOOD, "threshold": 0.3, "speedup": 2}, 422, "Validation", "not both"),
        ({"inputs": GOOD, "speedup": 50}, 422, "Validation", "calibration table of the checkpoint covers"),
        ({"inputs": GOOD, "criterion": "nonsense"}, 422, "Validation", "nonsense"),
        ({"inputs": GOOD, "criterion": "x" * 300}, 422, "Validation", "criterion"),
        ({"inputs": GOOD, "deadline_ms": 0}, 422, "Validation", "deadline_ms"),
        ({"inputs": GOOD, "deadline_ms": -1}, 422, "Validation", "deadline_ms"),
        (b"", 422, "Validation", "not JSON"),
        (b"{", 422, "Validation", "not JSON"),
        (b"\xff\xfe", 422, "Validation", "not JSON"),
        (b'{"inputs": "a", "inputs": "b"}', 422, "Validation", "'inputs' is there twice"),
        (b'{"inputs": "a", "threshold": NaN}', 422, "Validation", "NaN is no number of JSON"),
        (b'{"inputs": "a", "threshold": Infinity}', 422, "Validation", "Infinity is no number"),
        (b'{"inputs": "a", "threshold": 1e999}', 422, "Validation", "threshold"),
        (b'{"inputs": "a", "priority": ' + b"1" * 5000 + b"}", 422, "Validation", "a number has 5000 digits"),
        (b"[" * 10_000, 422, "Validation", "nested too deeply"),
        (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 422, "Validation", "inputs"),
        (b"x" * 30_000, 413, "Validation", "more than 20000 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused(client: Client, body: Any, status: int, kind: str, text: str) -> None:
    found, answer, _ = client.ask("/predict", body)
    assert (found, answer["error_type"]) == (status, kind)
    assert text in answer["error"]
    assert set(answer) == {"error", "error_type"}
    assert "/" not in answer["error"]
    assert client.ask("/predict", {"inputs": GOOD})[0] == 200


def test_over_long_text_is_cut(client: Client, sst2: pfengine.Engine) -> None:
    text = "dull " * 600
    assert client.ask("/predict", {"inputs": text})[1] == best_first(sst2, text)


def test_lone_surrogates_are_text_like_any_other(client: Client, sst2: pfengine.Engine) -> None:
    assert client.ask("/predict", b'{"inputs": "good \\ud800 film"}')[1] == best_first(sst2, "good \ufffd film")


def test_unknown_fields_are_ignored(client: Client) -> None:
    assert client.ask("/predict", {"inputs": GOOD, "whatever": [1, {"a": 2}]})[0] == 200


def test_inference_client(client: Client, sst2: pfengine.Engine) -> None:
    hub = pytest.importorskip("huggingface_hub")
    url = f"http://127.0.0.1:{client.port}"
    found = hub.InferenceClient(url).text_classification(GOOD)
    assert [(each.label, each.score) for each in found] == [
        (each["label"], each["score"]) for each in best_first(sst2, GOOD)
    ]
    one = hub.InferenceClient(url).text_classification(BAD, top_k=1, function_to_apply="none")
    logits = sst2.predict([BAD]).logits[0]
    assert [(each.label, each.score) for each in one] == [("negative", logits[0])]
    sigmoid = hub.InferenceClient(url).text_classification(BAD, function_to_apply="sigmoid")
    np.testing.assert_allclose([each.score for each in sigmoid], 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_info(client: Client, sst2: pfengine.Engine) -> None:
    status, found, _ = client.ask("/info")
    assert status == 200
    assert found["model_type"] == {
        "classifier": {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    }
    assert (found["model_id"], found["max_input_length"], found["max_client_batch_size"]) == ("sst2", 512, 4)
    assert (found["layers"], found["model_sha"]) == (12, sst2.mark)
    keys = """model_id model_sha model_dtype served_model_name model_type max_concurrent_requests max_input_length
        max_batch_tokens max_batch_requests max_client_batch_size auto_truncate tokenization_workers version sha
        docker_label"""
    assert set(keys.split()) <= set(found)


def test_tokenize(client: Client, sst2: pfengine.Engine) -> None:
    status, found, _ = client.ask("/tokenize", {"inputs": [GOOD, "ok"]})
    assert status == 200
    backend = sst2.tokenizer.backend
    assert backend is not None
    assert [[token["id"] for token in text] for text in found] == [backend.encode(text).ids for text in (GOOD, "ok")]
    first, last = found[0][0], found[0][-1]
    assert first["special"]
    assert last["special"]
    assert all(GOOD[t["start"] : t["stop"]] == t["text"] for t in found[0] if not t["special"])
    assert not any(t["special"] for t in client.ask("/tokenize", {"inputs": "ok", "add_special_tokens": False})[1][0])


@pytest.mark.parametrize("words", [5, 700, 5000])
def test_tokenize_cuts_nothing_off(client: Client, words: int) -> None:
    (found,) = client.ask("/tokenize", {"inputs": "ok " * words, "add_special_tokens": False})[1]
    assert "".join(token["text"] for token in found) == "ok " * words


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff\ud800 ok", "\ud83d\ude42 \ude42"])
def test_tokenize_reads_lone_surrogates_as_predict_does(client: Client, text: str) -> None:
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert client.ask("/tokenize", {"inputs": text})[:2] == client.ask("/tokenize", {"inputs": clean})[:2]
    assert client.ask("/predict", {"inputs": text})[:2] == client.ask("/predict", {"inputs": clean})[:2]


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health(client: Client, path: str) -> None:
    status, body, _ = client.ask(path)
    assert status == 200
    assert list(body) == (["unix"] if path == "/health" else [])  # what Infinity's client reads


def test_rerank_needs_a_model_of_one_label(client: Client) -> None:
    status, found, _ = client.ask("/rerank", {"query": "a", "texts": ["b"]})
    assert (status, found["error_type"]) == (424, "Backend")


def test_metrics(client: Client) -> None:
    client.ask("/predict", {"inputs": GOOD})
    status, text, headers = client.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert float(lines['te_request_count{method="predict"}']) >= 1
    assert float(lines["te_request_duration_count"]) >= 1
    assert sum(float(value) for name, value in lines.items() if name.startswith("pfengine_exit_rows")) >= 1
    assert float(lines['pfengine_layer_speedup{model="sst2"}']) > 1
