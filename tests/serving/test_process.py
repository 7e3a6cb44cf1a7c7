"""`pfengine serve` as a process: it says when it is ready and where, and ends in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine import __main__, cli
from pfengine.bundled import find
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Client


class Process:
    def __init__(self, *options: str, **environment: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pfengine", "serve", "sst2", "--port", "0", "--grpc-port", "-1", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.seconds = time.monotonic() - self.started
        found = re.fullmatch(r"ready: http://127\.0\.0\.1:(\d+)\n", line)
        assert found, (line, self.process.stderr.read() if self.process.stderr and self.process.poll() else "")
        self.client = Client(int(found[1]))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT)


@contextlib.contextmanager
def serving(*options: str, **environment: str) -> Iterator[Process]:
    made = Process(*options, **environment)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT)]
)
def test_it_answers_and_ends(number: int) -> None:
    with serving() as server:
        assert server.client.ask("/predict", {"inputs": "a charming journey"})[0] == 200
        assert server.client.ask("/health")[0] == 200
        assert server.stop(number) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""


def test_threads_of_torch_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    for command, policy in (("serve", "passive"), ("classify", None)):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.setattr(sys, "argv", ["pfengine", command])
        __main__._app()
        assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.slow
def test_limits_from_the_environment() -> None:
    with serving(MAX_CLIENT_BATCH_SIZE="2", PAYLOAD_LIMIT="300", API_KEY="k", AUTO_TRUNCATE="false") as server:
        ask = server.client.ask
        assert ask("/predict", {"inputs": "a"})[0] == 401
        assert ask("/predict", {"inputs": [["a"]] * 3}, authorization="Bearer k")[0] == 422
        assert ask("/predict", {"inputs": "a" * 400}, authorization="Bearer k")[0] == 413
        info = ask("/info", authorization="Bearer k")[1]
        assert (info["max_client_batch_size"], info["auto_truncate"]) == (2, False)


@pytest.mark.slow
def test_work_under_way_is_finished_after_sigterm() -> None:
    """Readiness goes false first; what has been taken in is answered; then the process ends with 0."""
    with serving("--criterion", "never", "--precision", "fp32") as server:
        found: list[Any] = []
        texts = [["word " * 200]] * 8
        threads = [
            threading.Thread(target=lambda: found.append(server.client.ask("/predict", {"inputs": texts})[0]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            text = server.client.ask("/metrics")[1].decode()
            if float(re.search(r"te_queue_size\{.*\} (\S+)", text)[1]) > 0:  # type: ignore[index]
                break
        assert server.stop() == 0
        for thread in threads:
            thread.join(WAIT)
        assert found == [200, 200, 200]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no-such-folder"], "no-such-folder"),
        (["sst2", "--max-batch-tokens", "0"], "max_batch_tokens is 0"),
        (["sst2", "sst2"], "--served-model-name"),
        (["sst2", "--served-model-name", "a", "--served-model-name", "b"], "2 times for 1"),
        (["sst2", "--speedup", "99"], "calibration table"),
        (["sst2", "--host", "256.1.1.1"], "256.1.1.1"),
    ],
)
def test_what_cannot_be_served(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pfengine", "serve", *arguments, "--port", "0"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code in (1, 2)
    assert text in (said := capsys.readouterr().err)
    assert len(said.strip().splitlines()) == 1, said


def test_a_model_that_names_code_of_its_own(tmp_path: Path) -> None:
    path = Path(shutil.copytree(find("sst2"), tmp_path / "theirs"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Theirs"}}))
    manifest = json.loads((path / "pfengine.json").read_text())
    manifest.pop("files")  # a deliberate edit
    (path / "pfengine.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="never run"):
        engine = pfengine.load(path)
    with pytest.raises(pfengine.ConfigError, match=r"config.json of theirs names code beside it \('auto_map'\)"):
        served("theirs", engine, Limits())
