"""What a segment launches for heads that score words: tokens that are frozen are no queries, and rows leave empty.

All tokens are scored, and what stands at a word's first piece is the word's. Other tokens have layer -1 from the
beginning, as if they had been dropped, but are not frozen before their word is.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels.decide import Decided, ExitTest
from ..kernels.decide_tokens import decide_tokens
from ..kernels.layer_norm import Others
from ..kernels.survivors import Report, Survivors, survivors
from ..kernels.token_list import TokenList
from .cuda_block import Frozen, Listed
from .cuda_buffers import Bucket, Buffers
from .rule import TokenRule


def units_of(buffers: Buffers, batch: int, bucket: Bucket, here: Survivors) -> Survivors:
    """What is scored of a batch: its rows, or its tokens in the place of rows. here: `Buffers.batch` of `batch`."""
    if buffers.tokens is None:
        return here
    slots = buffers.tokens.listed(batch, bucket).slots
    return here._replace(slots=slots, source_rows=here.source_tokens, counts=here.counts[1:])


def sums_of(buffers: Buffers, layer: int, bucket: Bucket) -> tuple[Tensor | None, Tensor | None]:
    """The sums before the last output norm: those of the layer before this one, and where to write this layer's.

    None where nothing is renormalised. Before the first layer they are the embeddings, as no norm has been applied.
    """
    if buffers.tokens is None or not buffers.tokens.sums:
        return None, None
    sums = buffers.tokens.sums
    before = sums[(layer - 1) % 2] if layer > 1 else buffers.states[0]
    return before, sums[layer % 2][: bucket.tokens]


def frozen_of(
    listed: TokenList | None, x: Tensor, sums: Tensor | None, sources: tuple[Tensor, Tensor] | None
) -> tuple[Frozen | None, Listed | None]:
    """What `run_block` is told of frozen tokens and of queries; Nones where all tokens are queries.

    x: the layer's input; sums: of the layer before, where tokens are renormalised; sources: where both are read from.
    """
    if listed is None:
        return None, None
    others = Others(x if sums is None else sums, None if sources is None else sources[0], sums is not None)
    queries = listed.queries if sources is None else listed.sources
    return Frozen(listed.numbers, others), Listed(queries, listed.bounds, listed.query_count, listed.queries)


def let_tokens_go(
    buffers: Buffers,
    bucket: Bucket,
    here: Survivors,
    to: int,
    test: ExitTest,
    rule: TokenRule | None,
    decided: Decided,
    *,
    given: Tensor | None = None,
    answers: bool = True,
    source_tokens: Tensor | None = None,
    earlier_rows: Tensor | None = None,
    earlier_firsts: Tensor | None = None,
    report: Report | None = None,
) -> None:
    """Words leave as the rule says, or those that are `given`; then `to`, a `Position.batch`, lists what is left.

    The pieces of words that leave are frozen unless the rule does not freeze. source_tokens: where the scores are read
    from. report: tells the host how many are left.
    """
    tokens = buffers.tokens
    assert tokens is not None
    leave, asking = tokens.leave[: bucket.rows], tokens.asking[: bucket.rows]
    decide_tokens(
        test, decided.logits, here.bounds, here.counts[:1], tokens.frozen, leave, asking, tokens.places, tokens.pieces,
        signals=decided.signals, pool="window" if rule is None or rule.unit == "token" else rule.pool,
        window=1 if rule is None else rule.window, freezes=rule is None or rule.freezes, given=given, answers=answers,
        source_rows=source_tokens,
    )  # fmt: skip
    survivors(
        here.bounds, here.slots, leave, here.counts[:1], buffers.batch(to, bucket), earlier_rows=earlier_rows,
        earlier_firsts=earlier_firsts, tokens=tokens.listed(to, bucket), frozen=tokens.frozen, asking=asking,
        report=report,
    )  # fmt: skip
