"""More rows from few texts, for learning from a finished model: it answers any row, so that none needs a label.

Single texts are cropped, thinned, or joined from the beginning of one and the end of another. Pairs are thinned alone,
as their two parts belong together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..tokenization import Row, Tokenizer

CROP, THIN = 0.4, 0.7  # a draw below CROP is a crop, from there below THIN a thinned row, above it a joined one
DROPPED = 0.15  # share of the tokens that a thinned row lacks


def augmented(rows: Sequence[Any], tokenizer: Tokenizer, times: float, seed: int) -> list[dict[str, Any]]:
    """`times` as many further rows as there are, as {"input_ids", "token_type_ids"}; unreadable rows give none.

    Special tokens stay where they are. No row is longer than the tokenizer allows.
    """
    draw = random.Random(seed)
    special = {int(i) for row in tokenizer.encode([(0, "")]) if isinstance(row, Row) for i in row.ids}
    read = [row for row in tokenizer.encode(enumerate(rows)) if not isinstance(row, InputError)]
    whole = [row for row in read if len(row.ids) > len(special)]
    if not whole:
        return []
    inner = [np.array([int(i) not in special for i in row.ids]) for row in whole]
    # one run of tokens between special ones
    one_run = [np.count_nonzero(np.diff(own.astype(np.int8)) == 1) + own[0] == 1 for own in inner]
    single = [i for i, one in enumerate(one_run) if one]
    found = []
    for _ in range(round(times * len(rows))):
        i = draw.randrange(len(whole))
        row, own, kind = whole[i], inner[i], draw.random()
        if kind >= CROP and (kind < THIN or not one_run[i]):
            kept = ~own | np.array([draw.random() >= DROPPED for _ in own])
            found.append(_row(row.ids[kept], None if row.types is None else row.types[kept]))
            continue
        body = np.flatnonzero(own)
        if not one_run[i] or len(body) < 2:
            found.append(_row(row.ids, row.types))
            continue
        first, last = body[0], body[-1] + 1
        if kind < CROP:
            count = draw.randint(2, len(body))
            start = first + draw.randint(0, len(body) - count)
            middle = row.ids[start : start + count]
        else:
            j = draw.choice(single)
            other = whole[j].ids[inner[j]]
            middle = np.concatenate(
                [row.ids[first : first + draw.randint(1, len(body))], other[-draw.randint(1, len(other)) :]]
            )
        middle = middle[: tokenizer.max_length - (len(row.ids) - len(body))]
        found.append(_row(np.concatenate([row.ids[:first], middle, row.ids[last:]]), None))
    return found


def _row(ids: np.ndarray, types: np.ndarray | None) -> dict[str, Any]:
    row = {"input_ids": ids.tolist()}
    return row if types is None else row | {"token_type_ids": types.tolist()}
