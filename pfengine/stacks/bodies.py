"""JSON bodies of the HTTP faces that have no wire format of their own (LitServe, Ray Serve).

    {"text": "a text", "text_pair": "a second one", "threshold": 0.3}     {"text": ["one", "another"], "speedup": 2}

A text is answered with {"label", "score", "exit_layer"}, a list with a list. A text that cannot be classified fails its
request; in a list it has {"error"} in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .predictor import KNOBS, with_knobs

MOST_ROWS = 10_000  # of a request


class BodyError(ValueError):
    """A body that makes no sense; the message is a sentence for its client."""


@dataclass(frozen=True)
class Asked:
    """The rows of a request. single: it holds a text and not a list."""

    rows: list[Any]
    single: bool


def read(body: Any) -> Asked:
    """The rows of a body, with its knobs. Raises BodyError where it makes no sense as a whole."""
    if not isinstance(body, dict) or not isinstance(body.get("text"), (str, list)):
        raise BodyError("the body must be a JSON object with 'text': a text, or a list of texts")
    text, pair = body["text"], body.get("text_pair")
    single = not isinstance(text, list)
    if pair is not None and isinstance(pair, list) == single:
        raise BodyError("'text' and 'text_pair' must both be texts, or lists of texts")
    texts, pairs = (text, pair) if not single else ([text], None if pair is None else [pair])
    if len(texts) > MOST_ROWS:
        raise BodyError(f"'text' has {len(texts)} texts; a request may have {MOST_ROWS}")
    if pairs is not None and len(pairs) != len(texts):
        raise BodyError(f"'text' has {len(texts)} texts and 'text_pair' has {len(pairs)}")
    for name in KNOBS:
        if not isinstance(body.get(name), (int, float, type(None))) or isinstance(body.get(name), bool):
            raise BodyError(f"'{name}' must be a number")
    rows = texts if pairs is None else list(zip(texts, pairs, strict=True))
    return Asked([with_knobs(row if isinstance(row, tuple) else {"text": row}, body) for row in rows], single)


def answer(asked: Asked, answers: Sequence[dict[str, Any]]) -> Any:
    """What a request is answered. answers: of its rows. Raises BodyError where its only text cannot be classified."""
    if not asked.single:
        return [{"error": one["error"]} if "error" in one else one for one in answers]
    if "error" in answers[0]:
        raise BodyError(f"the text {answers[0]['error']}")
    return answers[0]
