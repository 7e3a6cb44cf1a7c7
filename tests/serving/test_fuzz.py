"""Requests that nobody meant: every one is answered or refused in its format's own way, and the server lives on.

PFENGINE_FUZZ_CASES says how many; each is drawn from a seed of its own, which the failure names.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import pfengine
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Client, port_of, running

CASES = int(os.environ.get("PFENGINE_FUZZ_CASES", "200"))
TEXT = "a charming journey"
TENSOR = {"name": "text", "shape": [2], "datatype": "BYTES", "data": [TEXT, "dull"]}
GOOD: list[tuple[str, Any]] = [
    ("/predict", {"inputs": TEXT, "truncate": True, "raw_scores": False, "speedup": 2.0}),
    ("/predict", {"inputs": [[TEXT], [TEXT, "and its pair"]], "threshold": 0.3, "deadline_ms": 1000}),
    ("/", {"inputs": TEXT, "parameters": {"function_to_apply": "softmax", "top_k": 1}}),
    ("/tokenize", {"inputs": [TEXT, "dull"], "add_special_tokens": True}),
    ("/rerank", {"query": TEXT, "texts": ["a", "b"], "return_text": True}),
    ("/classify", {"model": "sst2", "input": [TEXT, "dull"]}),
    ("/classify", {"input": [[5, 6, 7], [8]], "criterion": "never"}),
    ("/infinity/classify", {"input": [TEXT], "model": "sst2", "raw_scores": True}),
    ("/score", {"model": "sst2", "text_1": TEXT, "text_2": ["a", "b"]}),
    ("/v2/models/sst2/infer", {"id": "1", "inputs": [TENSOR], "outputs": [{"name": "logits"}]}),
    ("/v2/models/sst2/infer", {"inputs": [TENSOR], "parameters": {"speedup": 3, "binary_data_output": True}}),
    ("/ui/explain", {"text": TEXT, "threshold": 0.2}),
]
JUNK: list[Any] = [
    None, True, -1, 0, 2**63, 10**300, -1e308, 0.5, "", "\0", "\ud800", "🙂" * 50, "never", "entropy:nan", "x" * 5000,
    [], {}, [[]], [[[]]], [None], {"a": {"b": []}}, [1, "a", None], [-1], [2**40], [1.5], ["a", "b", "c"],
    {"inputs": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    limits = Limits(max_client_batch_size=4, payload_limit=20_000, request_timeout=10)
    engine = pfengine.load("sst2", precision="fp32")
    with running({"sst2": served("sst2", engine, limits)}, limits) as server:
        yield Client(port_of(server))


def mutated(value: Any, draw: random.Random) -> Any:
    """The body with one to three of its parts replaced, removed, added or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        at = value
        while isinstance(at, (dict, list)) and at:
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if isinstance(at[key], (dict, list)) and at[key] and draw.random() < 0.6:
                at = at[key]
                continue
            kind = draw.randrange(4)
            if kind == 0:
                del at[key]
            elif kind == 1 and isinstance(at, list):
                at.extend([at[key]] * draw.choice([1, 5, 40]))
            elif kind == 2 and isinstance(at, dict):
                at[draw.choice(["inputs", "input", "model", "texts", "criterion", "\0", "x" * 300])] = copy.deepcopy(
                    draw.choice(JUNK)
                )
            else:
                at[key] = copy.deepcopy(draw.choice(JUNK))
            break
    return value


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """The bytes with a few of them replaced, removed or added."""
    found = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            del found[place:]
        elif kind == 1:
            found[place:place] = draw.choice([b"\xff", b"{", b"[" * 3000, b"]", b'"', b"NaN", b"1e999", b"\x00", b","])
        elif kind == 2:
            del found[place : place + draw.randint(1, 20)]
        elif place < len(found):
            found[place] = draw.randrange(256)
    return bytes(found)


def check(connection: http.client.HTTPConnection, path: str, body: bytes, **headers: str) -> int:
    """Ask, and see that the answer is one that the server means."""
    connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    data, status = response.read(), response.status
    assert status in (200, 400, 404, 413, 422, 424, 501) or (  # not 5xx: nothing broke
        status == 504 and b"the deadline passed" in data and b'"deadline_ms"' in body  # a millisecond is soon over
    ), (status, data)
    assert b"inside the server" not in data, data
    if status != 200:
        assert b"Traceback" not in data
        assert b"pfengine/" not in data
        assert isinstance(json.loads(data), dict), data
        assert len(data) < 2000, "a refusal repeats what it was given"
    return status


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(4))
def test_bodies_that_nobody_meant(client: Client, part: int) -> None:
    connection, answers = http.client.HTTPConnection("127.0.0.1", client.port, timeout=WAIT), []
    for seed in range(part, CASES, 4):
        draw = random.Random(seed)
        path, body = draw.choice(GOOD)
        body = mutated(body, draw)
        raw = json.dumps(body, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")
        if draw.random() < 0.3:
            raw = damaged(raw, draw)
        try:
            answers.append(check(connection, path, raw))
        except BaseException:
            print(f"seed {seed}: {path} {raw[:500]!r}")
            raise
    print(f"answers by status: {sorted(Counter(answers).items())}")
    assert {200, 422} <= set(answers)
    assert client.ask("/predict", {"inputs": TEXT})[0] == 200


def binary(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    """A request with Triton's binary tensors, and its headers, damaged in one place or several."""
    texts = [draw.choice([TEXT, "", "🙂", "x" * 300]).encode() for _ in range(draw.randint(1, 4))]
    data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    size, shape = len(data), [len(texts)]
    if draw.random() < 0.3:
        size = draw.choice([0, -1, 2**31, 2**63, size + 1, size - 1])
    if draw.random() < 0.3:
        shape = draw.choice([[0], [-1], [2**62, 4], [len(texts), 1], [1] * 9, [len(texts) + 1], []])
    if draw.random() < 0.5:
        data = damaged(data, draw)
    parameters = {"binary_data_size": size}
    tensor = {"name": "text", "shape": shape, "datatype": "BYTES", "parameters": parameters}
    text = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "label", "parameters": {"binary_data": True}}]}
    ).encode()
    length = len(text) if draw.random() < 0.7 else draw.choice([0, len(text) - 1, 10**9, -1, 10**30])
    return text + data, {"inference_header_content_length": str(length)}


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(2))
def test_binary_tensors_that_lie(client: Client, part: int) -> None:
    connection, answers = http.client.HTTPConnection("127.0.0.1", client.port, timeout=WAIT), []
    for seed in range(part, CASES, 2):
        body, headers = binary(random.Random(seed))
        try:
            answers.append(check(connection, "/v2/models/sst2/infer", body, **headers))
        except BaseException:
            print(f"seed {seed}: {headers} {body[:500]!r}")
            raise
    print(f"answers by status: {sorted(Counter(answers).items())}")
    assert {200, 400} <= set(answers)
    assert client.ask("/predict", {"inputs": TEXT})[0] == 200


@pytest.mark.fuzz
def test_messages_of_grpc_that_lie(client: Client) -> None:
    """Any bytes become a message or are refused, and any message becomes rows or a failure."""
    from google.protobuf.message import DecodeError

    from pfengine.serving.failures import Failure
    from pfengine.serving.grpc_messages import MESSAGES
    from pfengine.serving.grpc_server import request_of

    contents = {"bytes_contents": [b"a", b"b"]}
    whole = MESSAGES["ModelInferRequest"](
        model_name="sst2", inputs=[{"name": "text", "datatype": "BYTES", "shape": [2], "contents": contents}]
    ).SerializeToString()
    read = 0
    for seed in range(CASES):
        draw = random.Random(seed)
        try:
            rows, _ = request_of(MESSAGES["ModelInferRequest"].FromString(damaged(whole, draw)))
        except (DecodeError, Failure):
            continue
        read += 1
        assert all(isinstance(row, (str, tuple)) for row in rows), seed
    print(f"{read} messages read, {CASES - read} refused")
    assert 0 < read < CASES
