"""Ray Data over Parquet, and Ray Serve over HTTP. Each in a process of its own: workers take its classes by value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine

from .conftest import ENVIRONMENT, TEXTS, blocks, free_port, needs, run, run_python

pytestmark = needs("ray")
Make = Callable[..., Path]

START = """
import os
import ray
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
ray.data.DataContext.get_current().enable_progress_bars = False
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RAY_USAGE_STATS_ENABLED", "0")


def write(folder: Path, columns: dict[str, Any], files: int) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    table = pyarrow.table(columns)
    size = -(-len(table) // files)
    for i in range(files):
        pyarrow.parquet.write_table(table.slice(i * size, size), folder / f"{i}.parquet")


def read(folder: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet

    found: dict[str, list[Any]] = pyarrow.parquet.read_table(folder).to_pydict()
    return found


def test_the_page_of_ray_data(tmp_path: Path, engine: pfengine.Engine) -> None:
    (code,) = blocks("ray", "python")
    write(tmp_path / "texts", {"id": [1, 2, 3, 4], "text": [*TEXTS, None]}, files=2)
    run_python("import ray\nray.init(num_cpus=4, include_dashboard=False)\n" + code, tmp_path)
    found = read(tmp_path / "answers")
    rows = sorted(zip(*found.values(), strict=True))
    assert list(found) == ["id", "text", "label", "score", "exit_layer", "error"]
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert [row[2] for row in rows] == ["positive", "negative", "negative", ""]
    assert all(1 <= row[4] <= 12 for row in rows[:3])
    assert rows[3][4] == 0
    assert "it must be a string" in rows[3][5] or "a row is" in rows[3][5]


KILLED = (
    START
    + """
import signal
from pfengine.stacks.ray_data import Classifier

class Killed(Classifier):
    batches = 0

    def __call__(self, batch):
        self.batches += 1
        if self.batches == 5:
            try:
                os.close(os.open("killed", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)

workers = ray.data.ActorPoolStrategy(size=2)
options = {"checkpoint": CHECKPOINT, "precision": "fp32"}
texts = ray.data.read_parquet("texts/").repartition(target_num_rows_per_block=5000)
found = texts.map_batches(Killed, fn_constructor_kwargs=options, compute=workers, num_cpus=1, batch_size=1000)
found.write_parquet("answers/")
"""
)


def test_a_killed_worker_loses_and_doubles_no_row(make_text_checkpoint: Make, tmp_path: Path) -> None:
    """100,000 rows; the fifth batch of one of the two workers kills it."""
    checkpoint = make_text_checkpoint(threshold=0.9)
    draw = np.random.default_rng(0)
    words = np.array(["a", "film", "good", "bad", "slow", "is", "very", "bleak", "and", "great"])
    texts = [" ".join(words[row]) for row in draw.integers(0, len(words), (100_000, 3))]
    write(tmp_path / "texts", {"id": np.arange(100_000), "text": texts}, files=20)
    run_python(KILLED.replace("CHECKPOINT", repr(str(checkpoint))).replace('"killed"', repr(str(tmp_path / "killed"))),
               tmp_path)  # fmt: skip
    assert (tmp_path / "killed").exists()
    found = read(tmp_path / "answers")
    order = np.argsort(found["id"])
    assert np.array_equal(np.array(found["id"])[order], np.arange(100_000))
    assert [found["text"][i] for i in order] == texts
    assert set(found["error"]) == {""}
    expected = pfengine.load(checkpoint, precision="fp32").predict(texts)
    assert np.array_equal(np.array(found["exit_layer"])[order], expected.exit_layers)
    assert len(set(found["exit_layer"])) > 1
    scores = expected.probabilities.max(1)
    assert np.array_equal(np.array(found["score"], np.float32)[order], scores)


STOPPED = (
    START
    + """
import time
from ray.data.checkpoint import CheckpointConfig
from pfengine.stacks.ray_data import Classifier

class Stopped(Classifier):
    def __call__(self, batch):
        if STOP in batch["id"]:
            while not os.listdir(CHECKPOINTS):  # something has been written
                time.sleep(0.1)
            raise RuntimeError("stopped")
        with open("seen", "a") as file:
            file.write("".join(f"{i}\\n" for i in batch["id"].tolist()))
        return super().__call__(batch)

context = ray.data.DataContext.get_current()
context.target_min_block_size = context.target_max_block_size = 1000  # bytes: small data would be one block
context.checkpoint_config = CheckpointConfig("id", CHECKPOINTS, delete_checkpoint_on_success=False)
ONE = ray.data.ActorPoolStrategy(size=1)
texts = ray.data.read_parquet("texts/", override_num_blocks=8)
texts.map_batches(Stopped, fn_constructor_args=["sst2"], batch_size=50, compute=ONE).write_parquet("answers/")
"""
)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "texts", {"id": np.arange(400), "text": ["good"] * 400}, files=8)
    (tmp_path / "checkpoints").mkdir()
    code = STOPPED.replace("CHECKPOINTS", repr(str(tmp_path / "checkpoints")))
    code = code.replace('"seen"', repr(str(tmp_path / "seen")))
    with pytest.raises(AssertionError, match="stopped"):
        run_python(code.replace("STOP ", "375 "), tmp_path)
    first = (tmp_path / "seen").read_text().split()
    done = len(read(tmp_path / "answers")["id"])
    assert 0 < done < 400
    (tmp_path / "seen").unlink()
    run_python(code.replace("STOP ", "-1 "), tmp_path)
    second = (tmp_path / "seen").read_text().split()
    assert sorted(read(tmp_path / "answers")["id"]) == list(range(400))
    assert len(second) == 400 - done
    assert len(first) >= done


def test_columns_that_do_not_fit(text_checkpoint: Path) -> None:
    from pfengine.stacks.ray_data import Classifier

    classify = Classifier(str(text_checkpoint), prefix="p_", pair_column="other")
    texts = np.array(["a", "b"], object)
    found = classify({"text": texts, "other": texts, "label": np.arange(2)})
    assert list(found) == ["text", "other", "label", "p_label", "p_score", "p_exit_layer", "p_error"]
    with pytest.raises(pfengine.ConfigError, match="there is no column 'other'; there are text"):
        classify({"text": texts})
    with pytest.raises(pfengine.ConfigError, match="has a column 'label' already; give a prefix"):
        Classifier(str(text_checkpoint))({"text": texts, "label": np.arange(2)})
    with pytest.raises(pfengine.ConfigError, match="batch_format='numpy'"):
        classify(["a"])  # type: ignore[arg-type]
    with pytest.raises(pfengine.CheckpointError):
        Classifier("/nowhere")


def test_the_page_of_ray_serve(start: Callable[..., None], tmp_path: Path) -> None:
    (command,), (ask,) = blocks("ray", "bash"), blocks("ray", "sh")
    start(command.strip(), "http://127.0.0.1:8000/-/healthz")
    for _ in range(100):
        found = run(["bash", "-c", ask], tmp_path)
        if found.startswith("["):
            break
    assert [one["label"] for one in json.loads(found)] == ["positive", "negative"]


SERVE = (
    START
    + """
import concurrent.futures, json, time, urllib.error, urllib.request
import pfengine
from ray import serve
from pfengine.stacks import ray_serve
from pfengine.stacks.bodies import BodyError

TEXTS = ["a charming journey", "bleak and dull", "it's slow -- very, very slow"]
engine = pfengine.load("sst2", precision="fp32")
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
options = {"max_batch_size": "32", "batch_wait_seconds": "0.05", "precision": "fp32"}
handle = serve.run(ray_serve.build({"checkpoint": "sst2", **options}))

def ask(body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:PORT/", raw), timeout=60) as response:
            return response.status, json.load(response), None
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text, error.headers.get("retry-after")

good = [({"text": text, **knobs}, engine.classify([text], **knobs)[0])
        for text in TEXTS for knobs in ({}, {"threshold": 0}, {"speedup": 2.5})]
good += [({"text": TEXTS}, engine.classify(TEXTS)), ({"text": []}, []),
         ({"text": "a", "text_pair": "b"}, engine.classify(("a", "b"))[0])]
bad = [{"texts": 1}, {"text": "a", "threshold": "x"}, b"{", b"\\xff", b"[" * 100000,
       {"text": "a", "threshold": 1, "speedup": 2}, b'{"text": "a", "threshold": NaN}']
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    answers = list(pool.map(ask, [body for body, _ in good] + bad))
for (body, expected), (status, found, _) in zip(good, answers):
    assert (status, found) == (200, expected), (body, found)
for body, (status, found, _) in zip(bad, answers[len(good):]):
    assert status == 422 and list(found) == ["detail"], (body, status, found)

assert handle.remote({"text": TEXTS}).result() == engine.classify(TEXTS)
try:
    handle.remote({"text": 3}).result()
except BodyError as error:
    assert "the body must be a JSON object" in str(error)
else:
    raise AssertionError

class Slow(ray_serve.Classifier.func_or_class):
    async def answer(self, body):
        time.sleep(0.5)
        return await super().answer(body)

slow = serve.deployment(Slow).options(
    max_ongoing_requests=1, max_queued_requests=1, backpressure_config={"status_code": 429, "retry_after_s": 1})
serve.run(slow.bind("sst2"))
with concurrent.futures.ThreadPoolExecutor(12) as pool:
    answers = list(pool.map(ask, [{"text": "a"}] * 12))
statuses = [status for status, *_ in answers]
assert set(statuses) == {200, 429}, answers
assert {after for status, _, after in answers if status == 429} == {"1"}, answers
print("served", len(good), len(bad))
serve.shutdown()
"""
)


def test_ray_serve_over_http(tmp_path: Path) -> None:
    assert "served 12 7" in run_python(SERVE.replace("PORT", str(free_port())), tmp_path)


def test_the_defaults_of_the_deployment_say_429() -> None:
    from pfengine.stacks.ray_serve import Classifier, build

    assert Classifier.max_queued_requests > 0
    assert Classifier.backpressure_config.status_code == 429
    with pytest.raises(ValueError, match="checkpoint is missing"):
        build({})
