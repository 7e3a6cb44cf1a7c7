"""Logs as JSON: a line per event and per request, and no text in any of them."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pfengine
from pfengine.serving import logs, scheduler
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Client, port_of, running
from .test_process import serving

TEXT = "a charming and often affecting journey"
WORDS = ("charming", "affecting", "secretword")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the logger of pfengine writes."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(logs, "tell", lambda line: written.append(json.loads(line)))
    handler, log = logs.Lines(), logging.getLogger("pfengine")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield written
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.fixture
def client(sst2: pfengine.Engine) -> Iterator[Client]:
    limits = Limits(max_client_batch_size=4)
    with running({"sst2": served("sst2", sst2, limits)}, limits) as server:
        server.config.app.state.serving.observers = [logs.log_request]  # type: ignore[union-attr]
        yield Client(port_of(server))


def test_a_line_per_request(client: Client, lines: list[dict[str, Any]]) -> None:
    _, _, headers = client.ask("/predict", {"inputs": [[TEXT], ["dull"]]})
    client.ask("/predict", {"inputs": [["secretword"]] * 5})
    client.ask("/health")
    end = time.monotonic() + WAIT
    while len(lines) < 2 and time.monotonic() < end:  # they are written once the answer has been sent
        time.sleep(0.001)
    good, bad = [line for line in lines if line["message"] == "request"]
    assert good["exit_layers"] == [int(layer) for layer in headers["x-exit-layers"].split(",")]
    assert (good["method"], good["rows"], good["models"], good["failure"]) == ("predict", 2, ["sst2"], None)
    assert good["tokens"] == int(headers["x-compute-tokens"])
    assert 0 < good["inference_ms"] <= good["total_ms"]
    assert (bad["method"], bad["failure"]) == ("predict", "status 422")
    assert "rows" not in bad
    assert not any(word in json.dumps(lines) for word in WORDS)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_error_says_where_and_not_with_what(
    client: Client, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def run(*_: Any) -> None:
        raise error(TEXT)

    monkeypatch.setattr(scheduler, "run", run)
    assert client.ask("/predict", {"inputs": TEXT})[0] in (424, 503)
    found = next(line for line in lines if "error" in line)
    assert (found["level"], found["error"]) == ("error", error.__name__)
    assert any(place.startswith("serving/scheduler.py:") for place in found["raised_at"])
    assert not any(word in json.dumps(lines) for word in WORDS)


@pytest.mark.slow
def test_all_that_a_process_writes_on_standard_error_is_json() -> None:
    with serving("--json-output") as server:
        server.client.ask("/predict", {"inputs": TEXT})
        server.client.ask("/predict", {"inputs": "secretword", "threshold": "charming"})
        server.client.ask("/predict/secretword?q=charming", {"inputs": TEXT})
        with socket.create_connection(("127.0.0.1", server.client.port)) as wild:
            wild.sendall(b"secretword\r\n\r\n")
            wild.settimeout(5)
            wild.recv(1000)
        assert server.stop() == 0
        assert server.process.stderr is not None
        text = server.process.stderr.read()
    found = [json.loads(line) for line in text.splitlines()]
    assert next(line["message"] for line in found if line["level"] == "info") == "ready"
    assert sum(line["message"] == "request" for line in found) == 2
    assert all(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S") for line in found)
    assert not any(word in text for word in WORDS)
