"""A scheduler over a tiny model, and a server over the bundled checkpoint."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.bundled import find
from pfengine.exits.selection import Selection
from pfengine.rows import Row
from pfengine.serving.app import create_app
from pfengine.serving.connection import Connection
from pfengine.serving.job import Job
from pfengine.serving.limits import Limits
from pfengine.serving.scheduler import Scheduler
from pfengine.serving.served import Served
from pfengine.serving.server import Server, served

Make = Callable[..., Path]
WAIT = 30.0  # seconds that nothing here takes, on however busy a machine


@dataclass
class Submitted:
    """A job, and waiting for it."""

    job: Job
    over: threading.Event

    def wait(self) -> Job:
        assert self.over.wait(WAIT), "the job is never over"
        return self.job


@dataclass
class Bench:
    """A scheduler and jobs for it."""

    engine: pfengine.Engine
    scheduler: Scheduler
    served: Served
    jobs: list[Submitted] = field(default_factory=list)

    def rows(self, rows: list[Any], **knobs: Any) -> list[Row]:
        found = self.served.selection.resolved(self.engine.tokenizer.encode(enumerate(rows)))
        return [row for row in found if isinstance(row, Row)]

    def job(self, rows: list[Any], *, deadline: float | None = None, selection: Selection | None = None) -> Submitted:
        over = threading.Event()
        job = Job(self.rows(rows), selection or self.served.selection, deadline, lambda _: over.set())
        return Submitted(job, over)

    def submit_alone(self, rows: list[Any], **options: Any) -> Submitted:
        """A job in a batch of its own: those that are submitted next come after it."""
        made, end = self.submit(rows, **options), time.monotonic() + WAIT
        while self.scheduler.queue.rows and time.monotonic() < end:
            time.sleep(0.001)
        return made

    def submit(self, rows: list[Any], **options: Any) -> Submitted:
        made = self.job(rows, **options)
        self.scheduler.submit(made.job, size=sum(len(row.ids) for row in made.job.rows))
        return made


def random_rows(lengths: list[int], seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"input_ids": draw.integers(5, 90, length).tolist()} for length in lengths]


@pytest.fixture(scope="module")
def engine(make_checkpoint: Make) -> pfengine.Engine:
    path = make_checkpoint("bert", calibration=({"threshold": 0.8, "layer_speedup": 2.0},), threshold=0.8)
    return pfengine.load(path, precision="fp32")


@pytest.fixture
def bench(engine: pfengine.Engine) -> Iterator[Bench]:
    """Of one thread, so that batches come one after the other."""
    yield from _bench(engine, 1)


@pytest.fixture(params=[1, 3])
def any_bench(engine: pfengine.Engine, request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from _bench(engine, request.param)


def _bench(engine: pfengine.Engine, threads: int) -> Iterator[Bench]:
    model = served("tiny", engine, Limits(), batch_tokens=64, threads=threads)
    yield Bench(engine, model.scheduler, model)
    model.scheduler.close(WAIT)


@contextlib.contextmanager
def running(
    models: dict[str, Served], limits: Limits, grpc: bool = False, api_key: str | None = None
) -> Iterator[Server]:
    """A server in a thread, on a port of its own."""
    import uvicorn

    app = create_app(models, limits, api_key)
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", http=Connection)
    server = Server(config, list(models.values()), 5.0, ("127.0.0.1", 0) if grpc else None, api_key)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + WAIT
    while not server.config.app.state.serving.ready and time.monotonic() < end:  # type: ignore[union-attr]
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


@dataclass
class Client:
    """The simplest client there is: what a real one sends is in the tests that have one."""

    port: int

    def ask(
        self, path: str, body: Any = None, verb: str | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (of JSON the value), headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(verb or ("GET" if body is None else "POST"), path, raw, sent)
        response = connection.getresponse()
        found, data = response.headers, response.read()
        connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, json.loads(data) if is_json and data else data, dict(found)


def port_of(server: Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@pytest.fixture(scope="module")
def sst2() -> pfengine.Engine:
    return pfengine.load("sst2", precision="fp32")


@pytest.fixture(scope="module")
def ranker(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    """A model of one label, with the tokenizer of the bundled checkpoint."""
    path = Path(shutil.copytree(make_checkpoint("bert", labels=1, seed=3, config={"vocab_size": 30_000}),
                                tmp_path_factory.mktemp("ranker") / "out"))  # fmt: skip
    for file in find("sst2").glob("*token*"):
        shutil.copy(file, path)
    return pfengine.load(path, precision="fp32")


@pytest.fixture(scope="module")
def client(sst2: pfengine.Engine) -> Iterator[Client]:
    limits = Limits(max_client_batch_size=4, payload_limit=20_000)
    with running({"sst2": served("sst2", sst2, limits)}, limits) as server:
        yield Client(port_of(server))
