"""KServe's clients ask `pfengine serve`. Their messages cannot be in one process with tritonclient's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine

from .conftest import TEXTS, needs, page

pytestmark = needs("kserve")


def test_the_page(start: Callable[..., None], tmp_path: Path) -> None:
    printed = page("kserve", start, "http://127.0.0.1:3000/health", tmp_path)
    assert printed == "{'label': [2], 'score': [2], 'probabilities': [2, 2], 'exit_layer': [2]}"


def test_kserve_clients(ports: tuple[int, int], engine: pfengine.Engine) -> None:
    import grpc
    import httpx
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

    def request(texts: list[str], raw: bool, model: str = "sst2") -> Any:
        found = InferInput("text", [len(texts)], "BYTES")
        found.set_data_from_numpy(np.array([text.encode() for text in texts], object), binary_data=raw)
        return InferRequest(model, [found], request_id="3", parameters={"speedup": 2})

    async def ask() -> None:
        url = f"http://127.0.0.1:{ports[0]}"
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            assert await client.is_server_ready(url)
            assert await client.is_server_live(url)
            assert await client.is_model_ready(url, "sst2")
            for raw in (False, True):
                answer = await client.infer(url, request(TEXTS, raw), model_name="sst2")
                assert answer.id == "3"
                check_kserve(answer, engine)
            with pytest.raises(httpx.HTTPStatusError, match="there is no model 'none'"):
                await client.infer(url, request(TEXTS, False), model_name="none")
        async with InferenceGRPCClient(f"127.0.0.1:{ports[1]}") as client:
            assert await client.is_server_ready()
            assert await client.is_server_live()
            assert await client.is_model_ready("sst2")
            for raw in (False, True):
                check_kserve(await client.infer(request(TEXTS, raw)), engine)
            with pytest.raises(grpc.RpcError, match="there is no model 'none'"):
                await client.infer(request(TEXTS, False, "none"))

    asyncio.run(ask())


def check_kserve(answer: Any, engine: pfengine.Engine) -> None:
    outputs = {output.name: output.as_numpy() for output in answer.outputs}
    expected = engine.predict(TEXTS, speedup=2)
    np.testing.assert_array_equal(outputs["exit_layer"], expected.exit_layers)
    np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, rtol=1e-6)  # JSON has float64
    labels = [label.decode() if isinstance(label, bytes) else label for label in outputs["label"].tolist()]
    assert labels == [engine.labels[i] for i in expected.label_ids]
