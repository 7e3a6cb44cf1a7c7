"""What the page at /ui is made of and asks for; tests/serving/test_ui_page.py opens it in a browser."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.serving import ui
from pfengine.serving.failures import Failure
from pfengine.serving.limits import Limits
from pfengine.serving.server import served
from pfengine.serving.turns import Turns

from .conftest import WAIT, Client, Make, port_of, random_rows, running

TEXT = "a slow start, but in the end I was won over"


@pytest.fixture(scope="module")
def several(sst2: pfengine.Engine, engine: pfengine.Engine) -> Iterator[Client]:
    """Two models, the second without a tokenizer, and an API key."""
    limits = Limits(request_timeout=10)
    models = {"sst2": served("sst2", sst2, limits), "tiny": served("tiny", engine, limits)}
    with running(models, limits, api_key="secret") as server:
        yield Client(port_of(server))


@pytest.mark.parametrize("path", ui.FILES)
def test_files_of_the_page(client: Client, path: str) -> None:
    status, body, headers = client.ask(path)
    name, kind = ui.FILES[path]
    assert (status, headers["content-type"]) == (200, kind)
    assert body == files("pfengine.serving").joinpath("page", name).read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[key] for key in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {policy[key] for key in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere_and_writes_no_markup() -> None:
    found = {file.name for file in files("pfengine.serving").joinpath("page").iterdir()}
    assert found == {name for name, _ in ui.FILES.values()}
    for name in found:
        text = files("pfengine.serving").joinpath("page", name).read_text()
        assert not re.search(r"(https?:)?//[a-z]|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )
        assert not re.search(r"localStorage|sessionStorage|cookie|indexedDB", text), name
        if name.endswith(".html"):
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! type=\"module\" src=)", text)


def test_an_explanation(client: Client, sst2: pfengine.Engine) -> None:
    status, found, _ = client.ask("/ui/explain", {"text": TEXT})
    assert status == 200
    assert (found["model"], found["layers"], found["problem_type"]) == ("sst2", 12, "single_label_classification")
    (row,), answer = found["rows"], sst2.predict([TEXT])
    exit = row["exits"][row["exit"]]
    assert exit["layer"] == answer.exit_layers[0]
    np.testing.assert_array_equal(exit["probabilities"], answer.probabilities[0])
    assert found["criterion"]["threshold"] == sst2.criterion.threshold  # type: ignore[attr-defined]
    _, other, _ = client.ask("/ui/explain", {"text": TEXT, "text_pair": "yes", "threshold": 0.6, "criterion": "margin"})
    answer = sst2.predict([(TEXT, "yes")], criterion="margin:0.6")
    assert other["criterion"]["text"] == "margin:0.6"
    assert other["rows"][0]["exits"][other["rows"][0]["exit"]]["layer"] == answer.exit_layers[0]


def test_documents_of_a_query(client: Client, sst2: pfengine.Engine) -> None:
    documents = ["yes", "no", TEXT]
    _, found, _ = client.ask("/ui/explain", {"text": "is it good?", "documents": documents})
    answer = sst2.predict([("is it good?", each) for each in documents])
    assert [row["exits"][row["exit"]]["layer"] for row in found["rows"]] == answer.exit_layers.tolist()


def test_a_bad_row_fails_alone(sst2: pfengine.Engine) -> None:
    limits = Limits(auto_truncate=False)
    with running({"sst2": served("sst2", sst2, limits)}, limits) as server:
        _, found, _ = Client(port_of(server)).ask("/ui/explain", {"text": "q", "documents": ["word " * 600, "fine"]})
    assert found["rows"][0] == {"error": "must have at most 512 tokens; it has more"}
    assert found["rows"][1]["exits"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 422, "text"),
        ({"text": ""}, 422, "text"),
        ({"text": 3}, 422, "text"),
        ({"text": "a", "documents": []}, 422, "documents"),
        ({"text": "a", "documents": ["b"], "text_pair": "c"}, 422, "not both"),
        ({"text": "a", "documents": ["b"] * 5}, 422, "batch size 5 > maximum allowed batch size 4"),
        ({"text": "a", "threshold": "0.3"}, 422, "threshold"),
        ({"text": "a", "criterion": "nonsense"}, 422, "nonsense"),
        ({"text": "a", "criterion": "entropy"}, 200, ""),
        ({"text": "a", "criterion": "never", "threshold": 0.3}, 422, "takes no threshold"),
        ({"text": "a", "model": "other"}, 404, "there is no model 'other'"),
        ({"text": "a", "treshold": 0.3}, 422, "treshold"),
        (b'{"text": "a", "threshold": NaN}', 422, "NaN"),
        ({"text": "x" * 30_000}, 413, "more than 20000 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused(client: Client, body: Any, status: int, text: str) -> None:
    found, answer, _ = client.ask("/ui/explain", body)
    assert found == status, answer
    if status != 200:
        assert text in answer["error"]


@pytest.mark.slow
def test_models(several: Client, sst2: pfengine.Engine) -> None:
    _, found, _ = several.ask("/ui/models", authorization="Bearer secret")
    assert [each["name"] for each in found["models"]] == ["sst2", "tiny"]
    first = found["models"][0]
    assert (found["rows"], first["labels"], first["layers"]) == (32, 2, 12)
    assert first["criteria"][0] == repr(sst2.criterion)
    assert not any(text.startswith("entropy:") for text in first["criteria"][1:])
    points = sst2.checkpoint.manifest.calibration
    assert first["calibration"] == [
        {key: point[key] for key in ("threshold", "layer_speedup", "agreement")} for point in points
    ]
    for text in first["criteria"]:
        asked = {"text": "not bad", "criterion": text}
        _, answer, _ = several.ask("/ui/explain", asked, authorization="Bearer secret")
        assert answer["criterion"]["text"] == text
        row = answer["rows"][0]
        layer = sst2.predict(["not bad"], criterion=text).exit_layers[0]
        assert row["exits"][row["exit"]]["layer"] == layer, text


def test_a_calibration_of_another_criterion_is_not_told() -> None:
    other = pfengine.load("sst2", precision="fp32", criterion="margin:0.5")
    limits = Limits()
    with running({"sst2": served("sst2", other, limits)}, limits) as server:
        _, found, _ = Client(port_of(server)).ask("/ui/models")
    assert found["models"][0]["calibration"] == []


def test_what_is_explained_is_not_counted(client: Client) -> None:
    before = client.ask("/ui/live")[1]["models"]["sst2"]
    client.ask("/ui/explain", {"text": TEXT})
    _, _, headers = client.ask("/predict", {"inputs": TEXT})
    after = client.ask("/ui/live")[1]["models"]["sst2"]
    layer = int(headers["x-exit-layers"])
    assert after["rows"] == before["rows"] + 1
    assert after["exits"][layer - 1] == before["exits"][layer - 1] + 1
    assert sum(after["exits"]) == after["rows"]
    assert (after["queue"], after["running"]) == (0, True)
    assert b'te_request_count{method="explain"}' in client.ask("/metrics")[1]


def test_live_before_the_first_row(make_checkpoint: Make) -> None:
    """nan would be no JSON."""
    model = served("tiny", pfengine.load(make_checkpoint("bert"), precision="fp32"), Limits())
    assert ui._counts(model)["layer_speedup"] is None


def test_with_an_api_key_the_page_opens_and_its_calls_need_it(several: Client) -> None:
    for path in ui.FILES:
        assert several.ask(path)[0] == 200
        assert several.ask(path, verb="POST", body=b"{}")[0] == 401
    status, _, headers = several.ask("/ui/")
    assert (status, headers["location"].rpartition("/")[2]) == (307, "ui")
    for path, body in (("/ui/models", None), ("/ui/live", None), ("/ui/explain", {"text": "a"})):
        assert several.ask(path, body)[0] == 401
        assert several.ask(path, body, authorization="Bearer secret")[0] == 200


def test_a_model_without_a_tokenizer(several: Client) -> None:
    body = {"text": "a", "model": "tiny"}
    _, found, _ = several.ask("/ui/explain", body, authorization="Bearer secret")
    assert "no tokenizer" in found["rows"][0]["error"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No explanation ends until it is set."""
    gate = threading.Event()

    def explain(*_: Any) -> Any:
        gate.wait(WAIT)
        return {"exits": []}

    monkeypatch.setattr(ui, "explain", explain)
    yield gate
    gate.set()


@pytest.mark.slow
def test_explanations_hold_up_nobody_else(sst2: pfengine.Engine, held: threading.Event) -> None:
    """While one is computed the server answers; where more wait than may, they are refused at once."""
    limits = Limits(request_timeout=2)
    with running({"sst2": served("sst2", sst2, limits)}, limits) as server:
        client, found = Client(port_of(server)), list[tuple[int, Any, dict[str, str]]]()
        ask = lambda: found.append(client.ask("/ui/explain", {"text": TEXT}))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(7)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + WAIT
        while len(found) < 3 and time.monotonic() < end:
            assert client.ask("/predict", {"inputs": TEXT})[0] == 200
        assert [status for status, *_ in found] == [429] * 3
        assert found[0][2]["retry-after"] == "1"
        for thread in threads:  # the others are given up in time
            thread.join(WAIT)
        assert sorted(status for status, *_ in found) == [429] * 3 + [504] * 4
        held.set()
        until = time.monotonic() + WAIT
        while client.ask("/ui/explain", {"text": TEXT})[0] != 200:
            assert time.monotonic() < until


def test_one_turn_at_a_time_even_after_a_cancellation() -> None:
    started, gates = list[int](), [threading.Event() for _ in range(3)]

    def work(number: int) -> int:
        started.append(number)
        gates[number].wait(WAIT)
        return number

    async def check() -> None:
        turns = Turns(most=1)
        first, second = (asyncio.create_task(turns.run(lambda n=n: work(n))) for n in (0, 1))  # type: ignore[misc]
        while started != [0]:
            await asyncio.sleep(0.001)
        first.cancel()  # its work goes on
        await asyncio.sleep(0.05)
        assert started == [0]
        gates[0].set()
        gates[1].set()
        assert await second == 1
        assert started == [0, 1]
        with turns.entered(), pytest.raises(Failure, match="too many"), turns.entered():
            pass
        with turns.entered():
            pass
        with pytest.raises(ZeroDivisionError):
            await turns.run(lambda: 1 // 0)
        gates[2].set()
        assert await turns.run(lambda: work(2)) == 2

    asyncio.run(asyncio.wait_for(check(), WAIT))


def test_other_work_between_the_rows_of_a_request(sst2: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up is noticed there too."""
    limits, seen = Limits(), list[int]()
    model = served("sst2", sst2, limits)
    gate = threading.Event()

    def explain(engine: Any, selection: Any, row: Any) -> Any:
        seen.append(row.row_id)
        gate.wait(WAIT)
        time.sleep(0.05)  # in which the server hears of the client
        return {"exits": []}

    monkeypatch.setattr(ui, "explain", explain)
    with running({"sst2": model}, limits) as server:
        import http.client
        import json

        connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=WAIT)
        connection.request("POST", "/ui/explain", json.dumps({"text": "q", "documents": ["a"] * 20}))
        end = time.monotonic() + WAIT
        while not seen and time.monotonic() < end:
            time.sleep(0.005)
        connection.close()
        gate.set()
        state = server.config.app.state.serving  # type: ignore[union-attr]
        while state.active and time.monotonic() < end:
            time.sleep(0.005)
        assert len(seen) < 20
        assert Client(port_of(server)).ask("/ui/explain", {"text": "q"})[0] == 200


def test_rows_of_ids_take_no_part(several: Client) -> None:
    """The page sends text only, and so does whoever asks what it asks."""
    body = {"text": random_rows([3])[0], "model": "tiny"}
    assert several.ask("/ui/explain", body, authorization="Bearer secret")[0] == 422
