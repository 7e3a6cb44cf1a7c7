"""Infinity's client asks `pfengine serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pfengine

from .conftest import TEXTS, needs, page

pytestmark = needs("infinity_client")


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    printed = page("infinity", start, "http://127.0.0.1:3000/health", tmp_path)
    assert printed == "['positive', 'negative']"


def test_infinity_client(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    from infinity_client import Client
    from infinity_client.api.default import classify, health, models, rerank
    from infinity_client.models import ClassifyInput, HTTPValidationError, RerankInput

    client = Client(base_url=f"http://127.0.0.1:{ports[0]}")
    expected = engine.classify(TEXTS, top_k=None)
    found = classify.sync(client=client, body=ClassifyInput(TEXTS))
    assert [[one.label for one in row] for row in found.data] == [[one["label"] for one in row] for row in expected]
    assert found.data[0][0].score == pytest.approx(expected[0][0]["score"], abs=1e-6)
    raw = classify.sync(client=client, body=ClassifyInput(TEXTS, model="sst2", raw_scores=True))
    np.testing.assert_allclose(
        [row[0].score for row in raw.data], engine.predict(TEXTS).logits.max(1), rtol=1e-6
    )  # through JSON and back
    assert [each.id for each in models.sync(client=client).data] == ["sst2"]
    assert health.sync_detailed(client=client).status_code == 200
    refused = rerank.sync_detailed(client=client, body=RerankInput("a", ["b"]))  # sst2 ranks nothing
    assert refused.status_code == 400
    wrong = classify.sync_detailed(client=client, body=ClassifyInput([]))
    assert wrong.status_code == 422
    assert isinstance(wrong.parsed, HTTPValidationError)
