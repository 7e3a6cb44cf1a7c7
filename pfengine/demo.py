"""What `pfengine demo` runs: real sentences through a checkpoint, timed with exits on and off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .api import load

SENTENCES = (  # from the SST-2 development set
    "it 's a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "the acting , costumes , music , cinematography and sound are all astounding given the production 's austere "
    "locales .",
    "it 's slow -- very , very slow .",
    "although laced with humor and a few fanciful touches , the film is a refreshingly serious look at young women .",
    "a sometimes tedious film .",
    "you do n't have to know about music to appreciate the film 's easygoing blend of comedy and romance .",
    "in exactly 89 minutes , most of which passed as slowly as if i 'd been sitting naked on an igloo , formula 51 "
    "sank from quirky to jerky to utter turkey .",
    "the mesmerizing performances of the leads keep the film grounded and keep the audience riveted .",
    "it takes a strange kind of laziness to waste the talents of robert forster , anne meara , eugene levy , and "
    "reginald veljohnson all in the same movie .",
    "... the film suffers from a lack of humor ( something needed to balance out the violence ) ...",
    "we root for ( clara and paul ) , even like them , though perhaps it 's an emotion closer to pity .",
)
REPEATS = 15


@dataclass(frozen=True)
class Outcome:
    answers: list[dict[str, Any]]  # label, score, exit_layer, text
    num_layers: int
    layer_speedup: float
    wall_clock_speedup: float
    seconds: float
    seconds_full: float
    repeats: int
    precision: str
    threads: int


def run(checkpoint: str, speedup: float | None) -> Outcome:
    """Classify SENTENCES at the checkpoint's own threshold, or at a calibrated layer speed-up."""
    engine = load(checkpoint, speedup=speedup)
    answers = [{**answer, "text": text} for answer, text in zip(engine.classify(SENTENCES), SENTENCES, strict=True)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(REPEATS + 2):  # the first two build kernels and are not counted
        for exits in (False, True):
            start = time.perf_counter()
            engine.predict(SENTENCES, criterion=None if exits else "never")
            if repeat >= 2:
                seconds[exits].append(time.perf_counter() - start)
    on, off = float(np.median(seconds[True])), float(np.median(seconds[False]))
    return Outcome(
        answers=answers,
        num_layers=engine.num_layers,
        layer_speedup=engine.predict(SENTENCES).layer_speedup,
        wall_clock_speedup=off / on,
        seconds=on,
        seconds_full=off,
        repeats=REPEATS,
        precision=engine.precision,
        threads=torch.get_num_threads(),
    )
