"""The HTTP application: the endpoints of all wire formats over one set of models."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from .._version import __version__
from . import infinity, open_inference, openapi, shared_paths, tei, ui, vllm
from .endpoint import Endpoint, Observer, State
from .limits import Limits
from .metrics import Metrics
from .served import Served

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready", *ui.OPEN_PATHS)  # need no key
ENDPOINTS: tuple[Endpoint, ...] = (
    *tei.ENDPOINTS,
    *shared_paths.ENDPOINTS,
    *vllm.ENDPOINTS,
    *infinity.ENDPOINTS,
    *open_inference.ENDPOINTS,
    *ui.ENDPOINTS,
)


def create_app(
    models: Mapping[str, Served], limits: Limits, api_key: str | None = None, observers: Sequence[Observer] = ()
) -> FastAPI:
    """The application that answers with these models, the first where a request names none.

    api_key: what requests must carry as a Bearer token; None: nothing. observers: called after each request that may
    compute something.
    """
    app = FastAPI(
        title="pfengine",
        version=__version__,
        description="Text classification with early exits, in the wire formats of several servers.",
    )
    state = State(models, limits, Metrics(models), observers=observers)
    app.state.serving = state
    app.router.route_class = Direct
    for endpoint in ENDPOINTS:
        for path in endpoint.paths:
            _add(app, state, endpoint, path)
    if api_key is not None:
        app.add_middleware(Guard, key=api_key)
    return app


def _add(app: FastAPI, state: State, endpoint: Endpoint, path: str) -> None:
    async def run(request: Request) -> Response:
        return await endpoint.run(state, request)

    app.add_api_route(
        path, run, methods=[endpoint.verb], summary=endpoint.summary, description=endpoint.handler.__doc__,
        response_class=Response, openapi_extra=openapi.describe(endpoint, path),
        operation_id=f"{endpoint.verb}{path}", name=path,
    )  # fmt: skip


class Direct(APIRoute):
    """A route whose function takes the request as it is and makes the response: FastAPI only documents it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class Guard:
    """Lets requests pass that carry the key, which is compared in a time that says nothing about it."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["path"] in OPEN_PATHS and scope["method"] == "GET"):
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) == 1 and hmac.compare_digest(given[0], self.expected):
            await self.app(scope, receive, send)
            return
        await Response(status_code=401, headers={"www-authenticate": "Bearer"})(scope, receive, send)
