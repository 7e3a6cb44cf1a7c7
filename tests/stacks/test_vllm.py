"""The openai client asks `pfengine serve` as it asks vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pfengine

from .conftest import TEXTS, needs, page

pytestmark = needs("openai")


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    printed = page("vllm", start, "http://127.0.0.1:3000/health", tmp_path)
    assert printed == "['positive', 'negative'] ['sst2']"


def test_openai_client(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{ports[0]}/v1", api_key="none", max_retries=0)
    body = {"model": "sst2", "input": TEXTS, "speedup": 2}
    found = client.post("/classify", body=body, cast_to=object)
    for one, expected in zip(found["data"], engine.classify(TEXTS, speedup=2), strict=True):
        assert (one["label"], one["exit_layer"]) == (expected["label"], expected["exit_layer"])
        assert max(one["probs"]) == pytest.approx(expected["score"], abs=1e-6)
    with pytest.raises(openai.NotFoundError, match="there is no model 'none'"):
        client.post("/classify", body=body | {"model": "none"}, cast_to=object)
    with pytest.raises(openai.BadRequestError):
        client.post("/classify", body={"model": "sst2"}, cast_to=object)
