"""Ray Serve: a deployment whose batches are those of the engine, with thresholds per request."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from . import bodies
from .bodies import Asked, BodyError
from .predictor import Predictor

MAX_BATCH_SIZE, BATCH_WAIT_SECONDS = 64, 0.002  # most requests in a batch, and how long the first one waits for others
MAX_ONGOING, MAX_QUEUED = 256, 256  # requests at a replica, and at a proxy; more are answered 429


@serve.deployment(
    max_ongoing_requests=MAX_ONGOING,
    max_queued_requests=MAX_QUEUED,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
)
class Classifier:
    """`serve.run(Classifier.bind("ckpt/"))` answers HTTP requests; bodies are described in `stacks.bodies`.

    A handle takes the same objects: `handle.remote({"text": "a"})`. All requests of a batch go through the engine in
    one call. One that makes no sense is answered 422 with {"detail"}, or raises `bodies.BodyError` at the handle.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        batch_wait_seconds: float = BATCH_WAIT_SECONDS,
        **options: Any,
    ) -> None:
        """options: of `stacks.predictor.Predictor`. Raises what `pfengine.load` raises."""
        self._batched.set_max_batch_size(max_batch_size)  # type: ignore[attr-defined]  # what serve.batch adds
        self._batched.set_batch_wait_timeout_s(batch_wait_seconds)  # type: ignore[attr-defined]
        self.predictor = Predictor(checkpoint, **options)
        self.predictor.engine  # noqa: B018  # loads it: a replica is ready once this returns

    async def __call__(self, request: Any) -> Any:
        if not isinstance(request, Request):
            return await self.answer(request)
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            return JSONResponse({"detail": "the body is not JSON"}, 422)
        try:
            return JSONResponse(await self.answer(body))
        except BodyError as error:
            return JSONResponse({"detail": str(error)}, 422)

    async def answer(self, body: Any) -> Any:
        """The answer to a body. Raises BodyError where it makes no sense."""
        asked = bodies.read(body)
        return bodies.answer(asked, await self._batched(asked)) if asked.rows else []

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _batched(self, asked: list[Asked]) -> list[list[Any]]:
        """In a thread, so that requests are read meanwhile."""
        answers = iter(await asyncio.to_thread(self.predictor.answers, [row for each in asked for row in each.rows]))
        return [[next(answers) for _ in each.rows] for each in asked]

    async def check_health(self) -> None:
        """Raises where the model does not answer, and Ray replaces the replica."""
        await asyncio.to_thread(self.predictor.answers, ["health"])


def build(args: dict[str, Any]) -> Any:
    """`serve run pfengine.stacks.ray_serve:build checkpoint=sst2 speedup=2`, and the `args` of a config file.

    Numbers may be texts, as the command line gives them.
    """
    numbers = {"threshold": float, "speedup": float, "batch_wait_seconds": float, "max_batch_size": int,
               "max_length": int, "batch_tokens": int}  # fmt: skip
    options = {name: numbers.get(name, lambda value: value)(value) for name, value in args.items()}
    if "checkpoint" not in options:
        raise ValueError("checkpoint is missing; give checkpoint=PATH")
    return Classifier.bind(**options)  # type: ignore[attr-defined]
