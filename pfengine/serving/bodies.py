"""Request bodies: bounded in size and time, and JSON that means one thing only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .failures import Failure

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
MOST_DIGITS = 400  # of a number: none that means anything has more


class ClientGone(Exception):
    """The client hung up before it had sent its request, and reads no answer."""


async def read_body(receive: Receive, headers: Any, limit: int, seconds: float) -> bytes:
    """The whole body. Raises Failure where it has more than `limit` bytes, or takes longer than `seconds`."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _whole(receive, limit)
    except TimeoutError:
        raise Failure("validation", f"the body did not arrive within {seconds:g} seconds") from None


async def _whole(receive: Receive, limit: int) -> bytes:
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts += message.get("body", b"")
        if len(parts) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(parts)


def _too_large(limit: int) -> Failure:
    return Failure("too_large", f"the body has more than {limit} bytes")


def parse_json(body: bytes) -> Any:
    """The value of a JSON document. Raises Failure where it is not one, or says a key twice."""
    try:
        return json.loads(body, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except RecursionError:
        raise Failure("validation", "the body is nested too deeply") from None
    except (ValueError, UnicodeError) as error:
        raise Failure("validation", f"the body is not JSON: {str(error)[:200]}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:50]!r} is there twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
