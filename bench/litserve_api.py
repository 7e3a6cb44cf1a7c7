"""What `bench.peer_servers` has LitServe run: texts to labels, by transformers. It is sent to another process."""

from __future__ import annotations

from typing import Any

import litserve as ls

from .peer_servers import with_transformers


class Classifier(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.call = with_transformers()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe makes a parameter of an annotation
        return [texts[0] for texts in request["inputs"]]

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def predict(self, batch: Any) -> list[Any]:
        answers = iter(self.call([text for texts in batch for text in texts]))
        return [[next(answers) for _ in texts] for texts in batch]

    def encode_response(self, output: Any) -> Any:
        return output
