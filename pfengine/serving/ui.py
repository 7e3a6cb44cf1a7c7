"""The page at /ui, and what it asks for: what every exit says of a text, and what the models have done so far.

The page is in `serving/page/`. It needs nothing from elsewhere, and its Content-Security-Policy allows nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import time
from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..errors import InputError
from ..exits.text import fitting, parse_form
from ..rows import size
from . import tei
from .bodies import ClientGone
from .endpoint import Call, Endpoint, json_response
from .explain import describe, explain, track
from .failures import Failure, check_rows
from .requests import Finite
from .served import INLINE_CHARACTERS, Knobs, Served

FILES = {  # of the page, by address
    "/ui": ("index.html", "text/html; charset=utf-8"),
    "/ui/style.css": ("style.css", "text/css; charset=utf-8"),
    "/ui/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/ui/layers.js": ("layers.js", "text/javascript; charset=utf-8"),
    "/ui/live.js": ("live.js", "text/javascript; charset=utf-8"),
}
OPEN_PATHS = (*FILES, "/ui/")  # the last of them is redirected
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class ExplainRequest(BaseModel):
    """A text, a pair of texts, or a query (`text`) with `documents`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Annotated[str, Field(min_length=1)]
    text_pair: str | None = None
    documents: Annotated[list[str], Field(min_length=1)] | None = None
    model: str | None = Field(None, description="One of the served models; the first where it is left out.")
    criterion: str | None = Field(None, max_length=200, description="When rows leave; the model's own by default.")
    threshold: Finite | None = None


async def explanation(call: Call, body: ExplainRequest) -> Any:
    """Per exit the probabilities and what the criterion compares, and where the text leaves at any threshold.

    All layers are computed, each row by itself and beside the rows of other requests, among which it is not counted.
    """
    state = call.state
    model, rows = state.model(body.model), _rows(body)
    check_rows(len(rows), state.limits.max_client_batch_size)
    try:
        async with asyncio.timeout(state.limits.request_timeout):
            with state.turns.entered():
                found = await _explained(call, model, rows, Knobs(body.threshold, criterion=body.criterion))
                return await asyncio.get_running_loop().run_in_executor(None, json_response, found)
    except TimeoutError:
        seconds = state.limits.request_timeout
        raise Failure("deadline", f"no explanation within {seconds:g} seconds") from None


async def _explained(call: Call, model: Served, rows: list[Any], knobs: Knobs) -> dict[str, Any]:
    read = functools.partial(model.read, rows, knobs)
    long = sum(map(size, rows)) > INLINE_CHARACTERS
    selection, read_rows = await asyncio.get_running_loop().run_in_executor(None, read) if long else read()
    found: list[dict[str, Any]] = []
    for row in read_rows:
        if found and call.request is not None and await call.request.is_disconnected():
            raise ClientGone
        if isinstance(row, InputError):
            found.append({"error": row.reason})
            continue
        try:
            found.append(await call.state.turns.run(functools.partial(explain, model.engine, selection, row)))
        except InputError as error:
            found.append({"error": error.reason})
    criterion = describe(selection.criterion, model.exits.exit_layers)
    return {
        "model": model.name,
        "layers": model.engine.num_layers,
        "problem_type": model.engine.model.config.problem_type,
        "criterion": criterion | {"track": track(criterion, len(model.labels), found)},
        "rows": found,
    }


def _rows(body: ExplainRequest) -> list[Any]:
    if body.documents is not None and body.text_pair is not None:
        raise Failure("validation", "give documents or text_pair, not both")
    if body.documents is not None:
        return [(body.text, document) for document in body.documents]
    return [body.text if body.text_pair is None else (body.text, body.text_pair)]


async def models(call: Call) -> Any:
    """The models that there are, and how they may be asked."""
    found = [_model(each) for each in call.state.models.values()]
    return {"rows": call.state.limits.max_client_batch_size, "models": found}


def _model(model: Served) -> dict[str, Any]:
    engine, exits, own = model.engine, model.exits, model.selection.criterion
    text = describe(own, exits.exit_layers)["text"]
    others = _criteria(model) if len(exits.exit_layers) > 1 else []
    return {
        "name": model.name,
        "labels": len(model.labels),
        "layers": engine.num_layers,
        "criteria": [text, *others],
        "calibration": _calibration(model),
    }


def _calibration(model: Served) -> list[dict[str, float | None]]:
    """What held-out rows did at thresholds of the model's criterion; empty where that is of another criterion."""
    keys = ("threshold", "layer_speedup", "agreement")
    return [{key: point.get(key) for key in keys} for point in model.calibration]


def _criteria(model: Served) -> list[str]:
    """The other criteria that the model can run, each at a threshold to begin with."""
    own, found = getattr(model.selection.criterion, "form", None), []
    for name in fitting(model.exits.outputs):
        criterion = parse_form(name)
        if criterion.misfit(model.exits.outputs) is None and getattr(criterion, "form", None) != own:
            found.append(repr(criterion))
    return found


async def live(call: Call) -> Any:
    """What the models have done since the start: a client that asks twice knows what they do in a second."""
    return {"time": time.monotonic(), "models": {name: _counts(each) for name, each in call.state.models.items()}}


def _counts(model: Served) -> dict[str, Any]:
    totals, queue = model.scheduler.totals, model.scheduler.queue
    exits = totals.exits.tolist()[1:]
    rows = sum(exits)
    return {
        "rows": rows,
        "exits": exits,
        "layer_speedup": totals.layer_speedup if rows else None,
        "tokens_computed": totals.tokens_computed,
        "tokens_saved": totals.tokens_saved,
        "batches": totals.batches,
        "queue": queue.rows,
        "running": model.scheduler.running,
    }


async def page(call: Call) -> Any:
    """A file of the page."""
    assert call.request is not None
    name, kind = FILES[call.request.scope["route"].path]
    return Response(_content(name), headers=HEADERS | {"content-type": kind})


@functools.cache
def _content(name: str) -> bytes:
    return files(__package__).joinpath("page", name).read_bytes()


ENDPOINTS = (
    Endpoint(
        tuple(FILES),
        page,
        tei.errors,
        verb="GET",
        summary="A page to try the models on",
        media=("text/html", "text/css", "text/javascript"),
    ),
    Endpoint(("/ui/models",), models, tei.errors, verb="GET", summary="Models, for the page", answer=dict[str, Any]),
    Endpoint(("/ui/live",), live, tei.errors, verb="GET", summary="Counts, for the page", answer=dict[str, Any]),
    Endpoint(
        ("/ui/explain",),
        explanation,
        tei.errors,
        ExplainRequest,
        method="explain",
        summary="What every exit says",
        answer=dict[str, Any],
    ),
)
