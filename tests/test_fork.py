"""After a fork: the child answers with what its parent has loaded, the same bits, and the parent goes on."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import devices, extension, forking
from pfengine.errors import ConfigError
from pfengine.ops import cpu_torch

if not hasattr(os, "fork"):
    pytest.skip("there is no fork here", allow_module_level=True)

SECONDS = 60  # a child that waits for threads that are gone never ends
PRECISIONS = ["fp32", "int8"] if extension.has_cpu() else ["fp32"]
TEXTS = ["the film is a very good journey and a great movie " * n for n in (1, 2, 3, 4)] * 8
Make = Callable[..., Path]


def first_label_is_likely(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    return logits.softmax(1)[:, 0] > 0.4, None


CRITERIA: list[Any] = ["never", "entropy:0.9", "patience:1", first_label_is_likely]
Answers = list[tuple[bytes, list[int]]]


@pytest.fixture(autouse=True)
def _teams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "threads", lambda: 3)  # whatever this machine has


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request: pytest.FixtureRequest, make_text_checkpoint: Make) -> pfengine.Engine:
    return pfengine.load(make_text_checkpoint(), precision=request.param, criterion="never")


def answers(engine: pfengine.Engine) -> Answers:
    """A batch and one row, by every criterion."""
    out = []
    for criterion in CRITERIA:
        for inputs in (TEXTS, TEXTS[0]):
            got = engine.predict(inputs, criterion=criterion)
            out.append((got.logits.tobytes(), got.exit_layers.tolist()))
    return out


def start(call: Callable[[], Any]) -> Callable[[], Any]:
    """Runs `call` in a forked child; what is returned waits for its result."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            result = pickle.dumps(call())
            while result:
                result = result[os.write(writing, result) :]
        finally:
            os._exit(0)
    os.close(writing)

    def result() -> Any:
        parts, end = [], time.monotonic() + SECONDS
        try:
            while True:
                ready, _, _ = select.select([reading], [], [], max(0, end - time.monotonic()))
                assert ready, "the child hangs"
                part = os.read(reading, 1 << 16)
                if not part:
                    break
                parts.append(part)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)
        assert parts, "the child died"
        return pickle.loads(b"".join(parts))

    return result


def in_child(call: Callable[[], Any]) -> Any:
    return start(call)()


def test_children_and_their_children_answer_alike(engine: pfengine.Engine) -> None:
    before = answers(engine)
    assert before[0] != before[2]
    children = [start(lambda: (answers(engine), in_child(lambda: answers(engine)))) for _ in range(3)]
    for child in children:
        assert child() == (before, before)
    assert answers(engine) == before


def test_a_child_whose_parent_never_called(make_text_checkpoint: Make) -> None:
    engine = pfengine.load(make_text_checkpoint(), precision=PRECISIONS[-1], criterion="never")
    child = in_child(lambda: answers(engine))
    assert child == answers(engine)


LIMITED = """
import os, resource, sys
from pathlib import Path

import torch

import pfengine
from pfengine import extension

torch.set_num_threads(1)  # its OpenMP would end the process
engine = pfengine.load(sys.argv[1], precision=sys.argv[2], criterion="never")

def ask(threads):
    extension.threads = lambda: threads
    logits = engine.predict(["the film is a very good journey " * n for n in (1, 2, 3, 4)] * 8).logits
    return logits.tobytes(), len(os.listdir("/proc/self/task"))

expected, before = ask(1)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (36 << 20)  # the stacks of four threads, and half of one for the work
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
limited = ask(64)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
free = ask(64)
assert limited[0] == free[0] == expected
print(limited[1] - before, free[1] - before)
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs all of memory")
def test_where_no_thread_can_be_had(engine: pfengine.Engine) -> None:
    """A limit on threads or memory: the caller works alone. In a new process, as others have stacks to use again."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("how much memory is taken is not known here")
    command = [sys.executable, "-P", "-c", LIMITED, str(engine.checkpoint.path), engine.precision]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0, done.stderr
    limited, free = map(int, done.stdout.split())
    assert limited < 16
    assert free > 32, "so many are asked for"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_a_fork_beside_calls_of_other_threads(engine: pfengine.Engine, threads: int) -> None:
    expected, stop, wrong = answers(engine), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            if answers(engine) != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(6):
            assert in_child(lambda: answers(engine)) == expected
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not wrong


def test_a_thread_of_the_child(engine: pfengine.Engine) -> None:
    def call() -> Answers:
        out: list[Answers] = []
        workers = [threading.Thread(target=lambda: out.append(answers(engine))) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert out[0] == out[1]
        return out[0]

    assert in_child(call) == answers(engine)


def test_a_fork_from_a_thread(engine: pfengine.Engine) -> None:
    """gunicorn's threads, or a notebook's: the thread that forks has called before, and is the child's only one."""
    out: list[Any] = []
    worker = threading.Thread(target=lambda: out.extend([answers(engine), in_child(lambda: answers(engine))]))
    worker.start()
    worker.join()
    assert out[0] == out[1] == answers(engine)


_engine: pfengine.Engine


def _in_pool(text: str) -> tuple[bytes, list[int]]:
    got = _engine.predict([text] * 4, criterion="entropy:0.9")
    return got.logits.tobytes(), got.exit_layers.tolist()


def test_multiprocessing(engine: pfengine.Engine) -> None:
    global _engine
    _engine = engine
    expected = [_in_pool(text) for text in TEXTS]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_in_pool, TEXTS).get(SECONDS) == expected


def test_the_op_set_of_torch(make_text_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfengine.api, "find_op_set", lambda device: cpu_torch)
    engine = pfengine.load(make_text_checkpoint(), precision="fp32", criterion="never")
    before = answers(engine)
    assert in_child(lambda: answers(engine)) == before


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("announced", [True, False], ids=["torch's threads ended", "unannounced"])
def test_torch_goes_on(monkeypatch: pytest.MonkeyPatch, two_threads: None, announced: bool) -> None:
    """Unannounced, as by a program in C, or with an OpenMP that cannot end its threads: torch is left one."""
    monkeypatch.undo()  # extension.threads() itself
    if not announced:
        monkeypatch.setattr(forking, "_pause", None)
    x = torch.rand(400, 400)

    def call() -> Any:
        product = (x @ x).numpy()
        return product, float(torch.ones(1 << 20).exp().max()), extension.threads(), torch.get_num_threads()

    expected = call()
    for _ in range(2):
        product, largest, threads, torch_threads = in_child(call)
        np.testing.assert_allclose(product, expected[0], rtol=1e-5)  # torch sums as its number of threads has it
        assert (largest, threads) == expected[1:3]
        assert torch_threads == (2 if announced and forking._pause else 1)
    again = call()
    np.testing.assert_array_equal(again[0], expected[0])
    assert again[1:] == expected[1:]


def test_the_numbers_of_the_child_are_its_own(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(forking, "_pause", None)
    monkeypatch.setattr(extension.cpu_count, "available", lambda: 8)

    def call() -> tuple[int, int]:
        before = extension.threads()
        torch.set_num_threads(5)
        return before, extension.threads()

    assert in_child(call) == (2, 5)
    assert extension.threads() == 2


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_is_left(make_text_checkpoint: Make) -> None:
    """The tokenizers' word of warning is for those who have not thought of it."""
    script = """
        import os, sys, pfengine
        engine = pfengine.load(sys.argv[1], criterion="never")
        texts = ["a good film"] * 64
        before = engine.classify(texts) if sys.argv[2] == "called" else None
        pid = os.fork()
        after = engine.classify(texts)
        assert before is None or after == before
        if pid:
            assert "TOKENIZERS_PARALLELISM" not in os.environ
            assert os.waitpid(pid, 0)[1] == 0
        else:
            sys.stdout.write("answered")
    """
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    for called in ("called", "not called"):
        command = [sys.executable, "-P", "-c", textwrap.dedent(script), str(make_text_checkpoint()), called]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert (done.returncode, done.stdout, done.stderr) == (0, "answered", "")


def test_what_was_said_of_the_tokenizers_stays(monkeypatch: pytest.MonkeyPatch, engine: pfengine.Engine) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    expected = answers(engine)
    assert in_child(lambda: answers(engine)) == expected  # where "true" would hang
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_gpu_is_refused_in_the_child(engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "device", torch.device("cuda", 0))

    def call() -> list[str]:
        said = []
        for use in (
            lambda: engine.classify("good"),
            lambda: engine.predict("good"),
            lambda: engine.stream(["good"]),
            lambda: engine.layer_logits("good"),
            engine.warmup,
        ):
            with pytest.raises(ConfigError) as caught:
                use()
            said.append(str(caught.value))
        return said

    for text in in_child(call):
        assert "CUDA cannot be used after a fork" in text
        assert "'spawn'" in text


def test_no_gpu_is_loaded_where_the_parent_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(ConfigError, match=r"forked from one that had used CUDA.*'spawn'"):
        devices.find_device("cuda")
