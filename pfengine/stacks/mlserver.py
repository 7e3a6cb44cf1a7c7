"""MLServer: a runtime with the inputs and outputs of MLServer's own Hugging Face runtime.

Inputs: "args" or "array_inputs" (or one of any name) BYTES [rows], and for pairs "text_pair". Of the content type
hg_json or hg_jsonlist their values are JSON: strings, or objects with "text" and "text_pair". "top_k" and
"function_to_apply", of one value each, are what a pipeline takes. Parameters of a request: threshold, speedup,
criterion, deadline_ms. Output: "output" BYTES [rows, 1] of content type hg_jsonlist: per row a JSON object with label,
score and exit_layer, with top_k a list of them; {"error"} for a row of several that cannot be classified.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated, Any, Literal

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.errors import MLServerError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    Parameters,
    RequestInput,
    ResponseOutput,
)
from mlserver.utils import to_absolute_path
from pydantic import BaseModel, ConfigDict, Field

from ..answers import FUNCTIONS, results
from ..api import Engine
from ..errors import ConfigError
from ..serving.bodies import parse_json
from ..serving.endpoint import validated
from ..serving.failures import Failure
from ..serving.limits import Limits
from ..serving.open_inference import STATUS, knobs_of
from ..serving.served import Answer, Served
from ..serving.server import served
from .predictor import Predictor

TEXTS = ("args", "array_inputs", "text")
PAIRS = "text_pair"
JSON = ("hg_json", "hg_jsonlist")  # content types of the Hugging Face runtime


class Options(BaseModel):
    """What the pipeline behind the Hugging Face runtime takes as inputs, each of one value. Others are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)
    top_k: Annotated[int, Field(ge=1, le=100_000)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class PFEngineRuntime(MLModel):
    """`"implementation": "pfengine.stacks.mlserver.PFEngineRuntime"` in model-settings.json.

    `parameters.uri` is the checkpoint, `parameters.extra` may hold options of `stacks.predictor.Predictor`.
    Requests are batched by `serving.scheduler`, each at a threshold of its own.
    """

    async def load(self) -> bool:
        """Load the checkpoint. Raises ConfigError where MLServer is to batch, CheckpointError for one that cannot be
        used."""
        settings = self.settings
        if settings.max_batch_size > 1:  # its batches mix the parameters of requests, and fail as one
            raise ConfigError(
                f"max_batch_size of model {self.name!r} is {settings.max_batch_size}; leave it out: pfengine batches "
                "requests itself, and MLServer would answer some at the threshold of others"
            )
        uri = settings.parameters and settings.parameters.uri
        if not uri:
            raise ConfigError(f"parameters.uri of model {self.name!r} is missing; it names the checkpoint")
        path = to_absolute_path(settings, uri)
        options = dict(settings.parameters.extra or {})  # type: ignore[union-attr]
        cut = options.pop("truncation", "truncate")
        predictor = Predictor(path if os.path.exists(path) else uri, **options)
        engine: Engine = await asyncio.get_running_loop().run_in_executor(None, lambda: predictor.engine)
        limits = Limits(auto_truncate=cut != "error")
        self.model: Served = served(self.name, engine, limits, options.get("batch_tokens"))
        self.model.scheduler.start()
        if not self.inputs:  # type: ignore[has-type]
            self.inputs = [MetadataTensor(name="args", datatype="BYTES", shape=[-1], parameters=_kind("str"))]
        if not self.outputs:  # type: ignore[has-type]
            kind = _kind("hg_jsonlist")
            self.outputs = [MetadataTensor(name="output", datatype="BYTES", shape=[-1, 1], parameters=kind)]
        return True

    async def unload(self) -> bool:
        """Answer what waits, and let go of the model."""
        closed: bool = await asyncio.get_running_loop().run_in_executor(None, self.model.scheduler.close, 30.0)
        del self.model
        return closed

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answers to the rows of a request. Raises MLServerError with the status of what went wrong."""
        try:
            rows, options = self._read(payload)
            knobs = knobs_of(None if payload.parameters is None else payload.parameters.model_dump())
            answer = await self.model.answer(rows, knobs)
            if len(rows) == 1 and answer.failures:
                raise answer.failures[0]
        except Failure as failure:
            raise MLServerError(failure.message, STATUS[failure.kind]) from None
        found = [json.dumps(each).encode() for each in self._answers(answer, options)]  # gRPC takes bytes only
        output = ResponseOutput(
            name="output", datatype="BYTES", shape=[len(found), 1], data=found, parameters=_kind("hg_jsonlist")
        )
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

    def _answers(self, answer: Answer, options: Options) -> list[Any]:
        function, top = options.function_to_apply, options.top_k
        scores = self.model.probabilities(answer, None if function is None else FUNCTIONS[function])
        found: list[Any] = []
        for i, best in enumerate(results(self.model.labels, scores, answer.exit_layers, None, top or 1)):
            if i in answer.failures:
                found.append({"error": answer.failures[i].message})
                continue
            found.append([best] if top == 1 else best)
        return found

    def _read(self, payload: InferenceRequest) -> tuple[list[Any], Options]:
        """Rows and options. Raises Failure where a request makes no sense as a whole."""
        usual = payload.parameters and payload.parameters.content_type
        found = {tensor.name: self._values(tensor, usual) for tensor in payload.inputs}
        pairs = found.pop(PAIRS, None)
        options = {name: found.pop(name) for name in Options.model_fields if name in found}
        if len(found) != 1:
            raise Failure("validation", f"give one input of texts, such as '{TEXTS[0]}', and for pairs '{PAIRS}'")
        (texts,) = found.values()
        if not texts:
            raise Failure("empty", "the request has no rows")
        if wrong := next((name for name, values in options.items() if len(values) != 1), None):
            raise Failure("validation", f"input '{wrong}' must have one value")
        read = validated(Options, {name: value for name, (value,) in options.items()})
        if pairs is None:
            return texts, read
        if len(pairs) != len(texts):
            raise Failure("validation", f"there are {len(texts)} texts, and {len(pairs)} in '{PAIRS}'")
        return list(zip(texts, pairs, strict=True)), read

    def _values(self, tensor: RequestInput, usual: str | None) -> list[Any]:
        """What an input holds, of JSON the values. usual: the content type where the input has none."""
        if tensor.datatype != "BYTES":
            if tensor.name not in Options.model_fields:
                raise Failure("validation", f"input '{tensor.name[:50]}' must be of type BYTES")
            return list(tensor.data)
        kind = (tensor.parameters and tensor.parameters.content_type) or usual
        try:
            texts = list(StringCodec.decode_input(tensor))
        except UnicodeDecodeError:
            raise Failure("validation", f"input '{tensor.name[:50]}' has bytes that are not UTF-8") from None
        return [parse_json(text.encode("utf-8", "surrogatepass")) for text in texts] if kind in JSON else texts


def _kind(content_type: str) -> Parameters:
    return Parameters(content_type=content_type)
