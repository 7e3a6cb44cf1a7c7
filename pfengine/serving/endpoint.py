"""From an HTTP request to a handler of a wire format and back: bodies, failures, headers, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from .bodies import ClientGone, parse_json, read_body
from .failures import Failure, check_rows, overloaded, shutting_down
from .limits import Limits
from .metrics import Metrics
from .served import Answer, Knobs, Served
from .turns import Turns


def soon(call: Callable[..., None], *arguments: Any) -> None:
    """Call it once the answer that is being made has been sent, which need not wait for it."""
    asyncio.get_running_loop().call_soon(call, *arguments)


@dataclass
class State:
    """What all endpoints of a server share. ready: may requests be sent here?"""

    models: Mapping[str, Served]  # the first one answers where a request names none
    limits: Limits
    metrics: Metrics
    ready: bool = False
    stopping: bool = False
    active: int = 0  # requests under way
    observers: Sequence[Observer] = ()  # of requests that are over
    turns: Turns = field(default_factory=Turns)  # of what runs beside the scheduler

    @contextlib.contextmanager
    def entered(self, method: str) -> Iterator[Callable[[], float]]:
        """A request under way. Raises Failure where there are too many.

        What it gives counts the request as answered, and returns the seconds that it took.
        """
        started = time.perf_counter()

        def succeeded() -> float:
            seconds = time.perf_counter() - started
            soon(self.metrics.succeeded, method, seconds)
            return seconds

        if self.stopping:
            raise shutting_down()
        if self.active >= self.limits.max_concurrent_requests:
            raise overloaded()
        self.active += 1
        try:
            yield succeeded
        finally:
            self.active -= 1

    async def check(self) -> None:
        """Raise Failure where a model does not answer."""
        for model in self.models.values():
            await model.check()

    async def check_ready(self, model: Served | None = None) -> None:
        """Raise Failure where requests may not be sent here, or a model does not answer: this one, or any."""
        if not self.ready or self.stopping:
            raise Failure("unhealthy", "the server is not ready")
        await (self.check() if model is None else model.check())

    def model(self, name: str | None = None) -> Served:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Failure("unknown_model", f"there is no model {name[:100]!r}; there are {', '.join(self.models)}")
        return self.models[name]


@dataclass
class Call:
    """One request. method: its name in the metrics. headers: what the answer says beside its body."""

    state: State
    request: Request | None  # None where it did not come by HTTP
    method: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, Answer]] = field(default_factory=list)  # with the name of the model that gave each
    started: float = field(default_factory=time.perf_counter)

    async def gone(self) -> None:
        """Returns when the client has hung up."""
        assert self.request is not None
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def over(self, failure: str | None = None) -> None:
        """Tell the observers that the request is over; failure: what went wrong."""
        for observer in self.state.observers:
            soon(observer, self, failure)

    async def answer(self, model: Served, rows: list[Any], knobs: Knobs, *, one: bool = False) -> Answer:
        """The answers of a model. one: a row that fails fails the request, as do too many rows.

        Sets the headers that say where rows left and what took how long.
        """
        check_rows(len(rows), self.state.limits.max_client_batch_size)
        if not rows:
            raise Failure("empty", "`inputs` cannot be empty")
        answer = await model.answer(rows, knobs, None if self.request is None else self.gone)
        if one and answer.failures:
            raise next(iter(answer.failures.values()))
        soon(self.state.metrics.answered, self.method, answer)
        self.answers.append((model.name, answer))
        layers = answer.exit_layers[answer.exit_layers > 0]
        self.headers |= {
            "x-exit-layers": ",".join(map(str, answer.exit_layers.tolist())),
            "x-compute-type": str(model.engine.device.type),
            "x-compute-characters": str(answer.characters),
            "x-compute-tokens": str(sum(answer.tokens)),
            "x-tokenization-time": _milliseconds(answer.tokenisation),
            "x-queue-time": _milliseconds(answer.queue),
            "x-inference-time": _milliseconds(answer.inference),
        }
        if len(layers):
            self.headers["x-layer-speedup"] = f"{model.engine.num_layers / layers.mean():.3f}"
        return answer


log = logging.getLogger("pfengine.serving")
Observer = Callable[[Call, str | None], None]
Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Endpoint:
    """An address of a wire format.

    body: checks the request, which its handler gets as second argument; None: the handler reads what it needs. errors:
    status and body of a failure in this format. method: of te_request_count. answer: the type of its JSON, for the
    OpenAPI document, as are `media`, other content types of answers, `request`, the type of the body where that is not
    `body`, and `more_errors`, other formats of failures.
    """

    paths: tuple[str, ...]
    handler: Handler
    errors: Callable[[Failure], tuple[int, Any]]
    body: type[BaseModel] | None = None
    verb: str = "POST"
    method: str = "single"
    summary: str = ""
    answer: Any = None
    media: tuple[str, ...] = ()
    request: Any = None
    more_errors: tuple[Callable[[Failure], tuple[int, Any]], ...] = ()

    async def run(self, state: State, request: Request) -> Response:
        """The response to a request, whatever happens."""
        call = Call(state, request, self.method)
        response = await self._response(call)
        if self.verb == "POST":
            call.over(None if response.status_code < 400 else f"status {response.status_code}")
        return response

    async def _response(self, call: Call) -> Response:
        state = call.state
        try:
            if self.verb == "POST":
                with state.entered(self.method) as succeeded:
                    found = await self.handler(call, *await self._arguments(call))
                    if not (isinstance(found, Response) and found.status_code >= 400):
                        call.headers["x-total-time"] = call.headers["x-compute-time"] = _milliseconds(succeeded())
            else:
                found = await self.handler(call)
            return found if isinstance(found, Response) else json_response(found, 200, call.headers)
        except Failure as failure:
            return self.failed(state, failure)
        except ClientGone:
            state.metrics.failed("dropped")
            return Response(status_code=499)
        except Exception:  # the client learns nothing of the inside
            log.exception("a request to %s failed", self.paths[0])
            return self.failed(state, Failure("backend", "the request failed inside the server"))

    def failed(self, state: State, failure: Failure) -> Response:
        state.metrics.failed(failure.kind)
        status, body = self.errors(failure)
        headers = {} if failure.retry_after is None else {"retry-after": str(max(1, round(failure.retry_after)))}
        return json_response(body, status, headers)

    async def _arguments(self, call: Call) -> list[Any]:
        limits = call.state.limits
        assert call.request is not None
        call.body = await read_body(
            call.request.receive, call.request.headers, limits.payload_limit, limits.request_timeout
        )
        return [] if self.body is None else [validated(self.body, parse_json(call.body))]


def validated(kind: type[BaseModel], value: Any) -> Any:
    """The value as a request. Raises Failure, which names the first field that does not fit."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:200] or "the body"
        raise Failure("validation", f"{where}: {first['msg'][:200]}") from None
    except RecursionError:
        raise Failure("validation", "the body is nested too deeply") from None


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain, allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, headers, "application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))
