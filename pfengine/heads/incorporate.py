"""How the Past-Future head turns several states into scores: the incorporation G of the paper's section 3.

    concat-shared   sum_j P_j s_j + p_j, the projections P shared by all exits                     (authors' code)
    concat          W_i [s_1; ...; s_i] + w_i, one linear layer per exit                           (paper)
    max, avg        W_i max_j s_j + w_i, W_i mean_j s_j + w_i
    attention       W_i sum_j softmax_j(s_j . q / sqrt(H)) s_j + w_i, where the query q is the last of the states
    lstm            W_i h + w_i, where h is the last hidden state of an LSTM that reads the states in order

Past and future have separate tensors, except in concat-shared. The past is read layer by layer, and what is kept of it
leads with rows, so that it can be compacted. The future is read from one state, through the imitation learners; where
they and the incorporation are linear, both fold into one [C, H] matrix per layer.
"""

from __future__ import annotations

from typing import Literal

from .future import AttentionFuture, AvgFuture, ConcatFuture, Future, LstmFuture, MaxFuture, SharedFuture
from .past import AttentionPast, AvgPast, ConcatPast, LstmPast, MaxPast, Past, SharedPast

Incorporate = Literal["concat-shared", "concat", "max", "avg", "attention", "lstm"]
INCORPORATIONS: dict[str, tuple[type[Past], type[Future]]] = {
    "concat-shared": (SharedPast, SharedFuture),
    "concat": (ConcatPast, ConcatFuture),
    "max": (MaxPast, MaxFuture),
    "avg": (AvgPast, AvgFuture),
    "attention": (AttentionPast, AttentionFuture),
    "lstm": (LstmPast, LstmFuture),
}
