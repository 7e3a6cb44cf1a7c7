"""A real LitServe server with our API, asked over HTTP."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pfengine

from .conftest import TEXTS, blocks, free_port, needs, run, serving

pytestmark = needs("litserve")

SERVER = """
import litserve, sys
from pfengine.stacks.litserve import ClassifierAPI

if __name__ == "__main__":
    api = ClassifierAPI("sst2", precision="fp32", max_batch_size=int(sys.argv[2]), batch_timeout=0.05)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
"""


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    (code,), (command,), (ask,) = (blocks("litserve", language) for language in ("python", "bash", "sh"))
    (tmp_path / "server.py").write_text(code)
    start(command.strip(), "http://127.0.0.1:8000/health")
    found = json.loads(run(["bash", "-c", ask], tmp_path))
    assert [one["label"] for one in found] == ["positive", "negative"]


@pytest.fixture(scope="module", params=[1, 16])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that makes batches, and of one that makes none."""
    folder, port = tmp_path_factory.mktemp("litserve"), free_port()
    (folder / "server.py").write_text(SERVER)
    with serving(f"python server.py {port} {request.param}", f"http://127.0.0.1:{port}/health", folder):
        yield f"http://127.0.0.1:{port}/predict"


def ask(url: str, body: Any) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, raw, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_bad_requests_fail_alone_in_a_batch_of_good_ones(url: str, engine: pfengine.Engine) -> None:
    good = [
        ({"text": TEXTS[0]}, {}),
        ({"text": TEXTS}, {}),
        ({"text": TEXTS[2], "threshold": 0}, {"threshold": 0}),
        ({"text": TEXTS, "speedup": 2.5}, {"speedup": 2.5}),
        ({"text": []}, {}),
    ]
    bad = [
        ({"text": 3}, "the body must be a JSON object with 'text': a text, or a list of texts"),
        ({"texts": "a"}, "the body must be a JSON object with 'text': a text, or a list of texts"),
        ([1], "the body must be a JSON object with 'text': a text, or a list of texts"),
        ({"text": "a", "text_pair": ["b"]}, "'text' and 'text_pair' must both be texts, or lists of texts"),
        ({"text": ["a"], "text_pair": []}, "'text' has 1 texts and 'text_pair' has 0"),
        ({"text": "a", "threshold": "low"}, "'threshold' must be a number"),
        ({"text": "a", "threshold": True}, "'threshold' must be a number"),
        ({"text": "a", "threshold": 1, "speedup": 2}, "the text has 'threshold' and 'speedup'; leave one of them out"),
        ({"text": ["a"] * 10_001}, "'text' has 10001 texts; a request may have 10000"),
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda each: ask(url, each[0]), (*good, *bad)))
    for (body, options), (status, found) in zip(good, answers, strict=False):
        expected = engine.classify([body["text"]] if isinstance(body["text"], str) else body["text"], **options)
        assert status == 200
        assert found == (expected[0] if isinstance(body["text"], str) else expected)
    for (_, message), (status, found) in zip(bad, answers[len(good) :], strict=True):
        assert (status, found) == (422, {"detail": message})


def test_what_is_no_json_and_numbers_that_are_none(url: str) -> None:
    for body in (b"", b"{", b'{"text": "\xff"}', b"[" * 100_000):
        assert 400 <= ask(url, body)[0] < 500
    status, found = ask(url, b'{"text": "a", "threshold": NaN}')
    assert status == 422
    assert "nan" in found["detail"]
    found = ask(url, {"text": ["a", None, "b"]})[1]
    assert ["error" in one for one in found] == [False, True, False]


def test_pairs(url: str, engine: pfengine.Engine) -> None:
    assert ask(url, {"text": "a", "text_pair": "b"}) == (200, engine.classify(("a", "b"))[0])
    assert ask(url, {"text": ["a"], "text_pair": ["b"]}) == (200, engine.classify(("a", "b")))


def test_a_wrong_option_is_told_before_the_server_starts(tmp_path: Path) -> None:
    code = "from pfengine.stacks.litserve import ClassifierAPI; ClassifierAPI('sst2', treshold=1)"
    with pytest.raises(AssertionError, match="there is no option 'treshold'"):
        run([sys.executable, "-c", code], tmp_path)
