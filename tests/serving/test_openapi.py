"""Schemathesis: what the OpenAPI document says of requests and answers is so, for requests that it draws from it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import pfengine
from pfengine.serving.app import ENDPOINTS
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import port_of, running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is missing; it is in the extra 'dev'")

CASES = max(3, int(os.environ.get("PFENGINE_FUZZ_CASES", "200")) // 100)  # of each operation and model
OPERATIONS = [(path, endpoint.verb) for endpoint in ENDPOINTS for path in endpoint.paths]


@pytest.fixture(scope="module")
def documents(sst2: pfengine.Engine, ranker: pfengine.Engine) -> Iterator[list[Any]]:
    """Of a server whose first model is a classifier, and of one whose first model ranks."""
    limits = Limits(max_client_batch_size=4, payload_limit=20_000, request_timeout=10)
    with (
        running({"sst2": served("sst2", sst2, limits)}, limits) as one,
        running({"sst2": served("sst2", ranker, limits)}, limits) as other,
    ):
        address = "http://127.0.0.1:{}/openapi.json"
        yield [schemathesis.openapi.from_url(address.format(port_of(server))) for server in (one, other)]


@pytest.mark.fuzz
@pytest.mark.parametrize(("path", "verb"), OPERATIONS, ids=[f"{verb} {path}" for path, verb in OPERATIONS])
def test_answers_are_as_the_document_says(documents: list[Any], path: str, verb: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    asked = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    answers: Counter[int] = Counter()

    def run(case: Any) -> None:
        if "model" in case.path_parameters:  # other tests ask for models that are not there
            case.path_parameters = {"model": "sst2", "version": "1"}
        response = case.call()
        answers[response.status_code] += 1
        late = response.status_code == 504 and "deadline_ms" in str(case.body)  # a millisecond is soon over
        case.validate_response(response, checks=asked if late else [not_a_server_error, *asked])

    chosen = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    for document in documents:
        chosen(given(document[path][verb].as_strategy())(run))()
    print(verb, path, sorted(answers.items()))
    assert 200 in answers if verb == "GET" else set(answers) - {404}  # of few drawn requests none may make sense
