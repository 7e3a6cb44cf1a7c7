"""What the OpenAPI document says of an endpoint: its request, its answers, and what each failure becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from .endpoint import Endpoint
from .failures import Failure, Kind

HEADERS = {  # of every answer to rows
    "x-exit-layers": "After which layer each row left.",
    "x-layer-speedup": "Layers of the model over the layers that its rows went through.",
    "x-compute-tokens": "Tokens of all rows.",
    "x-total-time": "Milliseconds.",
}
PARTS = {"type": "string", "pattern": "^[^/]+$"}


def describe(endpoint: Endpoint, path: str) -> dict[str, Any]:
    """The OpenAPI operation of an endpoint at one of its paths, beside what FastAPI writes by itself."""
    found: dict[str, Any] = {"responses": _responses(endpoint)}
    if (kind := endpoint.request or endpoint.body) is not None:
        schema = inlined(TypeAdapter(kind).json_schema())
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if names := re.findall(r"\{(\w+)\}", path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": PARTS} for name in names]
    return found


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    fine: dict[str, Any] = {"description": "The answer."}
    if endpoint.answer is not None:
        schema = inlined(TypeAdapter(endpoint.answer).json_schema(mode="serialization"))
        fine["content"] = {"application/json": {"schema": schema}}
    for media in endpoint.media:
        fine.setdefault("content", {})[media] = {"schema": {"type": "string"}}
    if endpoint.verb == "POST":
        fine["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
    found = {"200": fine, "401": {"description": "The server has a key, and the request does not carry it."}}
    for status, failures in _failures(endpoint).items():
        described = ", ".join(dict.fromkeys(kind.replace("_", " ") for kind, _ in failures))
        schemas = [_like(body) for _, body in failures]
        schema = schemas[0] if all(each == schemas[0] for each in schemas) else {"anyOf": schemas}
        found[str(status)] = {
            "description": f"Not answered: {described}.",
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _failures(endpoint: Endpoint) -> dict[int, list[tuple[str, Any]]]:
    """By status the kinds of failures, each with its body."""
    found: dict[int, list[tuple[str, Any]]] = {}
    for errors in (endpoint.errors, *endpoint.more_errors):
        for kind in get_args(Kind):
            if kind != "unauthorized":  # which is answered without a body, before any endpoint
                status, body = errors(Failure(kind, "what was wrong"))
                found.setdefault(status, []).append((kind, body))
    return dict(sorted(found.items()))


def _like(example: Any) -> dict[str, Any]:
    """The schema of what has the form of an example; None is of any type."""
    if isinstance(example, Mapping):
        properties = {key: _like(value) for key, value in example.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    kinds = {str: "string", int: "integer"}
    return {"type": kinds[type(example)]} if type(example) in kinds else {}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without references."""
    parts = schema.pop("$defs", {})

    def replaced(value: Any) -> Any:
        if isinstance(value, list):
            return [replaced(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return replaced(parts[value["$ref"].rsplit("/", 1)[1]])
        return {key: replaced(each) for key, each in value.items()}

    found: dict[str, Any] = replaced(schema)
    return found
