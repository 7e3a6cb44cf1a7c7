"""The best k of a request's documents by a checkpoint's margins, over HTTP."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import extension
from pfengine.rows import Row
from pfengine.serving import scheduler
from pfengine.serving.job import Job
from pfengine.serving.limits import Limits
from pfengine.serving.passage import run
from pfengine.serving.queue import Place
from pfengine.serving.requests import best_documents
from pfengine.serving.scheduler import Scheduler
from pfengine.serving.served import Answer, Served
from pfengine.serving.server import served
from pfengine.serving.totals import Totals

from ..margins import DOCUMENTS, QUERY, K, checkpoint_with_margins
from .conftest import WAIT, Client, port_of, running

Make = Callable[..., Path]
PATHS = ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank"]
LIMITS = Limits(max_client_batch_size=len(DOCUMENTS))


@pytest.fixture(scope="module")
def checkpoint(make_text_checkpoint: Make) -> Path:
    return checkpoint_with_margins(make_text_checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> pfengine.Engine:
    return pfengine.load(checkpoint, precision="int8")


@pytest.fixture(scope="module")
def model(engine: pfengine.Engine) -> Served:
    """Whose batches have fewer tokens than the documents, and which has threads to share them among."""
    return served("ranker", engine, LIMITS, batch_tokens=64, threads=2)


@pytest.fixture(scope="module")
def client(model: Served) -> Iterator[Client]:
    with running({"ranker": model}, LIMITS) as server:
        yield Client(port_of(server))


def ask(client: Client, path: str, **more: Any) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """The places and exit layers of the documents, and the headers of the answer."""
    status, found, headers = client.ask(path, {"query": QUERY, "documents": DOCUMENTS, "model": "ranker"} | more)
    assert status == 200, found
    return [(each["index"], each["exit_layer"]) for each in found["results"]], headers


def ranked(engine: pfengine.Engine, **options: Any) -> list[tuple[int, int]]:
    return [(one["index"], one["exit_layer"]) for one in engine.rank(QUERY, DOCUMENTS, **options)]


def rows_of(model: Served) -> list[Row]:
    found = model.engine.tokenizer.encode(enumerate((QUERY, each) for each in DOCUMENTS))
    return [row for row in found if isinstance(row, Row)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("top", [1, K])
def test_as_rank(client: Client, engine: pfengine.Engine, path: str, top: int) -> None:
    found, headers = ask(client, path, top_n=top)
    assert found == ranked(engine, top_k=top)
    layers = [int(layer) for layer in headers["x-exit-layers"].split(",")]
    assert len(layers) == len(DOCUMENTS)
    assert min(layers) < max(layers) == 5, "all documents were one batch, and some left early"


def test_texts_of_text_embeddings_inference(client: Client, engine: pfengine.Engine) -> None:
    """Whose own requests have no number; then all texts are answered, each pair by itself."""
    for more, options in (({"top_n": K}, {"top_k": K}), ({}, {})):
        status, found, _ = client.ask("/rerank", {"query": QUERY, "texts": DOCUMENTS} | more)
        assert status == 200
        assert [(each["index"], each["exit_layer"]) for each in found] == ranked(engine, **options)
    assert client.ask("/rerank", {"query": QUERY, "texts": DOCUMENTS, "top_n": 0})[0] == 422


@pytest.mark.parametrize("path", PATHS)
def test_when_margins_have_no_say(client: Client, engine: pfengine.Engine, path: str) -> None:
    """For all documents each pair leaves by itself, as for what the request says; for more than k none leaves."""
    assert ask(client, path)[0] == ranked(engine)
    assert ask(client, path, top_n=K, criterion="never")[0] == ranked(engine, top_k=K, criterion="never")
    assert ask(client, path, top_n=K, threshold=1.0)[0] == ranked(engine, top_k=K, threshold=1.0)
    with pytest.warns(UserWarning, match="no document leaves early"):
        expected = ranked(engine, top_k=K + 1)
    found, headers = ask(client, path, top_n=K + 1)
    assert found == expected
    assert set(headers["x-exit-layers"].split(",")) == {"5"}


def test_a_server_that_is_told_a_criterion_goes_by_it(checkpoint: Path) -> None:
    told = pfengine.load(checkpoint, precision="int8", criterion="never")
    with running({"ranker": served("ranker", told, LIMITS)}, LIMITS) as server:
        found, headers = ask(Client(port_of(server)), "/v1/rerank", top_n=K)
    assert found == ranked(told, top_k=K)
    assert set(headers["x-exit-layers"].split(",")) == {"5"}


def test_few_documents(client: Client) -> None:
    """With k documents or fewer none leaves; one alone may be run by the thread that brings it."""
    for n in (1, 2, K):
        found, _ = ask(client, "/v1/rerank", top_n=K, documents=DOCUMENTS[:n])
        assert sorted(found) == [(i, 5) for i in range(n)]


def test_requests_at_once(client: Client, engine: pfengine.Engine) -> None:
    """Queries share no batch, and other requests among them take nothing from their documents."""
    expected, plain, wrong = ranked(engine, top_k=K), ranked(engine), []

    def work(top: int | None) -> None:
        for _ in range(6):
            found, _ = ask(client, "/v1/rerank", **({} if top is None else {"top_n": top}))
            if found != (plain if top is None else expected[:top]):
                wrong.append((top, found))

    threads = [threading.Thread(target=work, args=(top,)) for top in (K, None, 2, K, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert wrong == []


def test_a_deadline_ranks_by_the_last_exit_that_was_reached(model: Served) -> None:
    """A deadline that is over when the batch begins: the first exit answers, for documents that leave there or stay."""
    job = Job(rows_of(model), model.selection, time.monotonic() - 1, lambda _: None, model.margins)
    run(model.engine, [Place(job, i) for i in range(len(DOCUMENTS))], Totals(model.engine.num_layers))
    assert set(job.exit_layers.tolist()) == {1}
    scores = model.engine.layer_logits([(QUERY, document) for document in DOCUMENTS])[0]
    np.testing.assert_array_equal(job.logits, scores)
    answer = Answer(scores, job.exit_layers, None, {}, [], 0.0, 0.0, 0.0, by_margins=True)
    assert best_documents(answer, K) == np.argsort(-scores[:, 0], kind="stable")[:K].tolist()


@pytest.mark.skipif(extension.threads() < 2, reason="there is one core, or torch uses one thread")
def test_a_query_has_all_cores_where_nothing_else_is_under_way(
    client: Client, model: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores: list[int] = []

    def recorded(*arguments: Any) -> None:
        cores.append(extension.threads())
        run(*arguments)

    monkeypatch.setattr(scheduler, "run", recorded)
    ask(client, "/v1/rerank", top_n=K)
    assert cores == [extension.threads()]
    cores.clear()
    ask(client, "/v1/rerank")
    assert set(cores) == {1}, "other batches have a core each, after a query too"
    cores.clear()
    monkeypatch.setattr(Scheduler, "busy", 2)
    ask(client, "/v1/rerank", top_n=K)
    assert cores == [1]


def test_a_query_that_nobody_waits_for(model: Served) -> None:
    rows, over = rows_of(model), threading.Event()
    job = Job(rows, model.selection, None, lambda _: over.set(), model.margins)
    model.scheduler.submit(job, 1)
    model.scheduler.cancel(job)
    again = Job(rows, model.selection, None, lambda _: over.set(), model.margins)
    model.scheduler.submit(again, 1)
    assert over.wait(WAIT)
    assert (again.exit_layers > 0).all()
    end = time.monotonic() + WAIT
    while model.scheduler.busy and time.monotonic() < end:
        time.sleep(0.001)
    assert model.scheduler.queue.rows == 0


def test_a_batch_that_fails_is_tried_row_by_row_at_full_depth(
    client: Client, engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def fails_once(*arguments: Any) -> None:
        if not next(calls):
            raise RuntimeError("once")
        run(*arguments)

    monkeypatch.setattr(scheduler, "run", fails_once)
    found, headers = ask(client, "/v1/rerank", top_n=K)
    assert found == ranked(engine, top_k=K, criterion="never")
    assert set(headers["x-exit-layers"].split(",")) == {"5"}
