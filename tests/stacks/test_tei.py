"""huggingface_hub's InferenceClient asks `pfengine serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pfengine

from .conftest import TEXTS, needs, page

pytestmark = [needs("huggingface_hub"), pytest.mark.slow]  # a package that is also there without make test-stacks


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    printed = page("tei", start, "http://127.0.0.1:3000/health", tmp_path)
    assert printed == "positive True"


def test_inference_client(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import huggingface_hub as hub

    client = hub.InferenceClient(f"http://127.0.0.1:{ports[0]}")
    for text in TEXTS:
        (expected,) = engine.classify([text], top_k=None)
        found = client.text_classification(text)
        assert [one.label for one in found] == [one["label"] for one in expected]
        assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert [one.label for one in client.text_classification(TEXTS[0], top_k=1)] == ["positive"]
    raw = client.text_classification(TEXTS[0], function_to_apply="none")
    assert sum(one.score for one in raw) != pytest.approx(1)
    with pytest.raises(hub.errors.HfHubHTTPError):
        client.text_classification("")
