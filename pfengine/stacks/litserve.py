"""LitServe: an API whose batches are those of the engine, with thresholds per request."""

# LitServe hands annotations on to FastAPI, which needs them as they are and not as text.
from typing import Annotated, Any

import litserve
from fastapi import Body
from fastapi.responses import JSONResponse

from . import bodies
from .bodies import Asked, BodyError
from .predictor import Predictor


class ClassifierAPI(litserve.LitAPI):
    """`litserve.LitServer(ClassifierAPI("ckpt/"))` answers POST /predict; bodies are described in `stacks.bodies`.

    All requests of a batch go through the engine in one call. One that makes no sense is answered 422 with {"detail"},
    and the others of its batch are not affected.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        max_batch_size: int = 32,
        batch_timeout: float = 0.002,
        api_path: str = "/predict",
        **options: Any,
    ) -> None:
        """max_batch_size: most requests in a batch; batch_timeout: seconds to wait for them.

        options: of `stacks.predictor.Predictor`. The device is the one that LitServe assigns to a worker, unless
        `device` is given. Raises ConfigError for an unknown option.
        """
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, api_path=api_path)
        self.predictor = Predictor(checkpoint, **options)

    def setup(self, device: Any) -> None:
        """Load the model, in the worker."""
        options = {"device": str(device)} | self.predictor.options
        self.predictor = Predictor(self.predictor.checkpoint, **options)
        self.predictor.engine  # noqa: B018  # loads it: the worker is ready once this returns

    def decode_request(self, request: Annotated[Any, Body()], **kwargs: Any) -> Asked | BodyError:
        """An error raised here would be the answer to all requests of the batch."""
        try:
            return bodies.read(request)
        except BodyError as error:
            return error

    def batch(self, inputs: Any) -> list[Any]:
        return list(inputs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """The answers to a list of requests, or to one where LitServe makes no batches."""
        if not isinstance(x, list):
            return self.predict([x])[0]
        good = [asked for asked in x if isinstance(asked, Asked)]
        found = iter(self.predictor.answers([row for asked in good for row in asked.rows]))
        return [(asked, [next(found) for _ in asked.rows]) if isinstance(asked, Asked) else asked for asked in x]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        try:
            if isinstance(output, BodyError):
                raise output
            return bodies.answer(*output)
        except BodyError as error:
            return JSONResponse({"detail": str(error)}, 422)
