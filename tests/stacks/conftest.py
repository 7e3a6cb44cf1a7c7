"""Code blocks of the pages in docs/serving, run as they are written there, and a server for real clients."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
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
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait take ten times as long on shared cores
}


TEXTS = ["a charming journey", "bleak and dull", "it's slow -- very, very slow"]


def needs(package: str) -> pytest.MarkDecorator:
    """Skips where a package is missing, without importing it: some cannot be in one process with others."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is missing; make test-stacks installs it")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language on a page, in order."""
    text = (ROOT / "docs/serving" / f"{page}.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"docs/serving/{page}.md has no block of {language}"
    return found


def page(name: str, start: Callable[..., None], url: str, folder: Path) -> str:
    """What the Python of a page prints while the server of its bash runs, which answers at `url`."""
    (command,), (code,) = blocks(name, "bash"), blocks(name, "python")
    start(command.strip(), url)
    return run_python(code, folder).strip()


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


@contextlib.contextmanager
def serving(command: str, url: str, folder: Path) -> Iterator[None]:
    """A server by a shell command; the url answers 200 once it is up."""
    log = folder / "server.log"
    assert not answers(url), f"something else answers at {url}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + WAIT
        while not answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):  # what it has started and left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """start(shell command, url): runs a server until the test ends, and returns when the url answers 200."""
    with contextlib.ExitStack() as stack:

        def begin(command: str, url: str) -> None:
            stack.enter_context(serving(command, url, tmp_path))

        yield begin


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Those of a `pfengine serve` process for HTTP and gRPC."""
    http, grpc = free_port(), free_port()
    command = f"pfengine serve sst2 --precision fp32 --port {http} --grpc-port {grpc}"
    with serving(command, f"http://127.0.0.1:{http}/health", tmp_path_factory.mktemp("serve")):
        yield http, grpc


@pytest.fixture(scope="module")
def engine() -> pfengine.Engine:
    return pfengine.load("sst2", precision="fp32")
