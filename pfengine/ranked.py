"""All documents of a query through the layers as one flight, where only the best k are wanted (`exits.top_k`)."""

from __future__ import annotations

from collections.abc import Sequence

from .answers import has_answer, mark_unanswered
from .engine import exits
from .errors import ConfigError, InputError
from .exits.top_k import TopK
from .inference import Answered
from .model import Model
from .ops.flight import Answers
from .rows import Row
from .tokenization import pack


def answer_top_k(model: Model, window: Sequence[Row | InputError], rule: TopK, precision: str) -> Answered:
    """The answers to all documents of one query, whose row ids count from 0.

    The decision after an exit looks at all of them at once. So they are one flight, whatever a batch's budget is.
    Raises ConfigError where a flight has no room for so many.
    """
    answers = Answers(0, len(window), model.config.num_labels)
    rows = sorted((row for row in window if isinstance(row, Row)), key=lambda row: len(row.ids))
    if len(rows) > model.carrier.max_rows:
        raise ConfigError(
            f"there are {len(rows)} documents, and at most {model.carrier.max_rows} of a query can be ranked by the "
            "checkpoint's margins; give fewer, or criterion='never'"
        )
    if rows:
        packed = pack(rows, model.config)
        flight = model.carrier.start(packed, answers.slots(packed), answers)
        tested = rule.tested(model.exit_layers)
        for exit in exits(model, flight, model.full_depth, 0, tested):
            assert exit.logits is not None
            flight.leave(rule.leave(tested[exit.layer], exit.logits[:, 0].numpy(force=True)))
    return Answered(mark_unanswered(window, has_answer(answers.logits), precision), answers.logits, answers.exit_layers)
