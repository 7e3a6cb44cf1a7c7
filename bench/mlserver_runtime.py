"""The runtime that `bench.peer_servers` has MLServer run: texts to labels, by transformers."""

from __future__ import annotations

import json

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from .peer_servers import with_transformers


class Classifier(MLModel):
    async def load(self) -> bool:
        self.call = with_transformers()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        answers = [json.dumps(answer) for answer in self.call(texts)]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("labels", answers)])
