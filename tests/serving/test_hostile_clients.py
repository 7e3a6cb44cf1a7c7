"""Clients that are slow, hang up, send too much, or ask for more than there is."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pfengine
from pfengine.serving import connection, passage, scheduler
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Client, port_of, running

TEXT = "a charming journey"


@contextlib.contextmanager
def server(engine: pfengine.Engine, **limits: Any) -> Iterator[tuple[Client, Any]]:
    used = Limits(**limits)
    model = served("sst2", engine, used)
    with running({"sst2": model}, used) as made:
        yield Client(port_of(made)), model


@contextlib.contextmanager
def raw(client: Client, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.port), timeout=WAIT) as made:
        with contextlib.suppress(ConnectionError):  # the server may hang up before it has read all
            made.sendall(data)
        yield made


def closes(made: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := made.recv(65536):
            found += part
    return found


def request(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "POST /predict HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_head_that_never_ends(sst2: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with server(sst2) as (client, _):
        for start in (b"", b"POST /predict", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: b"):
            asked = time.monotonic()
            with raw(client, start) as made:
                assert closes(made) == b""
            assert time.monotonic() - asked < WAIT / 2
        with raw(client, b"GET /health HTTP/1.1\r\nHost: x\r\n") as made:  # one byte now and then does not help
            with contextlib.suppress(ConnectionError):
                for _ in range(40):
                    made.sendall(b"a")
                    time.sleep(0.02)
            assert closes(made) == b""
        assert client.ask("/health")[0] == 200


def test_a_body_that_never_comes(sst2: pfengine.Engine) -> None:
    with server(sst2, request_timeout=0.5) as (client, _):
        for sent in (request(b"", length=100), request(b'{"inputs"', length=100)):
            with raw(client, sent) as made:
                assert b"the body did not arrive within 0.5 seconds" in made.recv(65536)
        assert client.ask("/predict", {"inputs": TEXT})[0] == 200


def test_headers_that_never_end(sst2: pfengine.Engine) -> None:
    with server(sst2) as (client, _):
        with raw(client, b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 100_000) as made:
            assert b"headers are too large" in closes(made)
        with raw(client, b"GET /" + b"a" * 1_000_000) as made:
            assert b" 400 " in closes(made)
        assert client.ask("/health")[0] == 200


def test_tiny_chunks(sst2: pfengine.Engine) -> None:
    body = json.dumps({"inputs": TEXT, "padding": "x" * 60_000}).encode()
    chunks = b"".join(b"6\r\n" + body[i : i + 6].ljust(6) + b"\r\n" for i in range(0, len(body), 6)) + b"0\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(sst2) as (client, _), raw(client, head + chunks) as made:
        assert made.recv(65536).startswith(b"HTTP/1.1 200")


def test_chunks_without_end_are_cut_off(sst2: pfengine.Engine) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(sst2, payload_limit=10_000) as (client, _), raw(client, head) as made:
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                made.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b" 413 " in made.recv(65536)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Where it is cleared, no flight goes on until it is set."""
    monkeypatch.setattr(scheduler, "AT_ONCE_SECONDS", 0.0)  # what is slow would not be run at once
    gate, real = threading.Event(), passage.engine.exits
    gate.set()

    def exits(*arguments: Any) -> Any:
        for exit in real(*arguments):
            gate.wait(WAIT)
            yield exit

    monkeypatch.setattr(passage.engine, "exits", exits)
    return gate


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def dropped(client: Any) -> float:
    """How many clients the server has seen hang up."""
    text = client.ask("/metrics")[1].decode()
    found = re.search(r'te_request_failure\{err="dropped"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_a_client_that_hangs_up_costs_nothing_more(sst2: pfengine.Engine, slow: threading.Event) -> None:
    with server(sst2) as (client, model):
        slow.clear()
        queue = model.scheduler.queue
        body = json.dumps({"inputs": TEXT, "criterion": "never"}).encode()
        threads = model.scheduler.threads
        with contextlib.ExitStack() as under_way:
            for _ in range(threads):
                under_way.enter_context(raw(client, request(body)))
            until(lambda: model.scheduler.busy == threads)
            with contextlib.ExitStack() as waiting:
                for _ in range(5):
                    waiting.enter_context(raw(client, request(body)))
                until(lambda: queue.rows == 5)
            until(lambda: queue.rows == 0)  # they have hung up, and are forgotten
        until(lambda: dropped(client) == threads + 5)
        slow.set()
        until(lambda: model.scheduler.busy_since is None)
        assert client.ask("/predict", {"inputs": TEXT})[0] == 200
        assert model.scheduler.totals.exits.sum() == 2  # the probe at the start, and the one just now


def test_overload_is_refused_at_once(sst2: pfengine.Engine, slow: threading.Event) -> None:
    with server(sst2, max_concurrent_requests=8, max_queue_rows=4) as (client, _):
        slow.clear()
        found: list[tuple[int, Any, dict[str, str]]] = []
        body = {"inputs": TEXT, "criterion": "never"}
        threads = [threading.Thread(target=lambda: found.append(client.ask("/predict", body))) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: len(found) >= 12)
        refused = list(found)
        assert {status for status, *_ in refused} == {429}
        assert all(answer == {"error": "Model is overloaded", "error_type": "Overloaded"} for _, answer, _ in refused)
        assert all(headers["retry-after"] == "1" for *_, headers in refused)
        assert client.ask("/health")[0] == 200
        slow.set()
        for thread in threads:
            thread.join(WAIT)
        assert sorted({status for status, *_ in found}) == [200, 429]
        assert client.ask("/predict", {"inputs": TEXT})[0] == 200


def test_a_request_that_takes_too_long_is_given_up(sst2: pfengine.Engine, slow: threading.Event) -> None:
    with server(sst2, request_timeout=0.3) as (client, model):
        slow.clear()
        status, found, _ = client.ask("/predict", {"inputs": TEXT, "criterion": "never"})
        assert (status, found["error"]) == (504, "no answer within 0.3 seconds")
        slow.set()
        until(lambda: model.scheduler.busy_since is None)
        assert client.ask("/predict", {"inputs": TEXT})[0] == 200


def test_health_says_when_the_engine_hangs(sst2: pfengine.Engine, slow: threading.Event) -> None:
    with server(sst2, request_timeout=0.3) as (client, model):
        slow.clear()
        client.ask("/predict", {"inputs": TEXT, "criterion": "never"})
        until(lambda: client.ask("/health")[0] == 503)
        assert client.ask("/v2/health/ready")[0] == client.ask("/v2/models/sst2/ready")[0] == 503
        assert client.ask("/v2/health/live")[0] == 200
        slow.set()
        until(lambda: client.ask("/health")[0] == 200)
        assert model.scheduler.running
