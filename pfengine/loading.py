"""Preparing the models of a checkpoint or a cascade for an engine."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import torch

from .cascade_model import Cascade, Member
from .cascade_reader import CascadeCheckpoint
from .checkpoint import Checkpoint
from .devices import find_dtype
from .errors import ConfigError
from .exits.selection import Selection, choose
from .heads import HEADS
from .model import Model, build
from .ops import OpSet
from .options import whole
from .per_row import own_exits
from .reload import SummedTensors
from .tokenization import Tokenizer


class Preparation(NamedTuple):
    """How models are prepared: the arguments of `load` that concern each of them."""

    ops: OpSet
    device: torch.device
    precision: str
    max_length: int | None
    token_types: bool | None


class Prepared(NamedTuple):
    """What answers, what makes rows for it, and checksums of small tensors by key."""

    model: Model | Cascade
    tokenizer: Tokenizer
    sums: dict[str, int]


def check_max_length(ckpt: Checkpoint | CascadeCheckpoint, max_length: int | None) -> int | None:
    """`max_length` as an integer. Raises ConfigError where it is none, or more than any of the models takes."""
    if max_length is None:
        return None
    models = ckpt.models if isinstance(ckpt, CascadeCheckpoint) else (ckpt,)
    most = max(each.backbone.max_tokens for each in models)
    max_length = whole("max_length", max_length, f", at most {most} for this model")
    if max_length > most:
        raise ConfigError(f"max_length is {max_length}; this model takes 1 to {most} tokens")
    return max_length


def prepare(ckpt: Checkpoint | CascadeCheckpoint, how: Preparation) -> Prepared:
    """Prepare what answers, and what reads its rows. Raises CheckpointError or ConfigError as `load` does."""
    if not isinstance(ckpt, CascadeCheckpoint):
        longest = None if how.max_length is None else min(how.max_length, ckpt.backbone.max_tokens)
        tags = HEADS[ckpt.manifest.head["type"]].tags
        tokenizer = Tokenizer(
            ckpt.tokenizer, ckpt.backbone, longest, token_types=how.token_types, tags=tags, path=ckpt.path
        )
        tensors = SummedTensors(ckpt.tensors)
        model = build(replace(ckpt, tensors=tensors), how.ops, find_dtype(how.precision, how.device), how.device)
        return Prepared(model, tokenizer, tensors.sums)
    members, sums = list[Member](), dict[str, int]()
    for number, each in enumerate(ckpt.models, 1):
        exits = own_exits(each)
        rule = choose(exits, None, None, None)
        one = prepare(each, how)
        assert isinstance(one.model, Model)
        reading = hashlib.sha256(one.tokenizer.described().encode(errors="surrogatepass")).hexdigest()
        members.append(Member(one.model, one.tokenizer, Selection(exits, rule, rule), reading))
        sums |= {f"{number}/{key}": value for key, value in one.sums.items()}
    cascade = Cascade(tuple(members))
    return Prepared(cascade, members[0].tokenizer, sums)
