"""Code blocks of the pages in docs/serving, run as they are written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pfengine

ROOT = Path(__file__).parent.parent.parent
WAIT = 120.0  # seconds until a server must be up, on however busy a machine
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join([str(Path(pfengine.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait take ten times as long on shared cores
}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language on a page, in order."""
    text = (ROOT / "docs/serving" / f"{page}.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"docs/serving/{page}.md has no block of {language}"
    return found


def run_python(code: str, folder: Path) -> str:
    """What a block of Python prints, run in a process of its own."""
    return run([sys.executable, "-c", code], folder)


def run(command: list[str], folder: Path, seconds: float = 300) -> str:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """start(shell command, url): runs a server until the test ends, and returns when the url answers 200."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(command: str, url: str, folder: Path = tmp_path) -> None:
        log = tmp_path / f"server-{len(started)}.log"
        assert not answers(url), f"something else answers at {url}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output
            )
        started.append(process)
        end = time.monotonic() + WAIT
        while not answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)

    yield begin
    for process in started:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
