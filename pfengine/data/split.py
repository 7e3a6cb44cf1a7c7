"""Splitting rows off a data set, to calibrate thresholds on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..errors import ConfigError
from ..messages import warn
from .examples import Example


def split_off(examples: Sequence[Example], rows: int, seed: int, file: str) -> tuple[list[Example], list[Example]]:
    """As `hold_out`; ConfigError, with a number that works, where none would be held out or none kept."""
    kept, held = hold_out(examples, rows, seed)
    if kept and held:
        if len(held) < rows:
            warn(
                f"{len(held)} rows of {file} are held out, not {rows}: each of the others is part of a longer row, or "
                "a duplicate"
            )
        return kept, held
    fewer = max(1, len(examples) // 10)
    if fewer < rows and all(hold_out(examples, fewer, seed)):
        advice = f"give a smaller hold_out, such as {fewer}"
    else:
        advice = "give more rows or, for training, a separate file to calibrate on (held_out)"
    left = "none to calibrate on" if kept else "none to train on"
    raise ConfigError(f"{file} has {len(examples)} rows; holding out {rows} leaves {left}: {advice}")


def hold_out(examples: Sequence[Example], rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(kept, held out). No row held out is part of a longer row; rows that are part of one held out are not kept.

    Training rows of SST-2 are phrases cut from sentences: rows drawn at random would be short, and known from training.
    """
    everything = "\n" + "\n".join(example.text.strip() for example in examples) + "\n"
    held: list[Example] = []
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    seen: set[str] = set()
    for i in order:
        if len(held) == rows:
            break
        text = examples[i].text.strip()
        if text in seen or (examples[i].pair is None and everything.count(text) > everything.count(f"\n{text}\n")):
            continue
        seen.add(text)
        held.append(examples[i])
    inside = "\n" + "\n".join(example.text.strip() for example in held) + "\n"
    if any(example.pair is not None for example in examples):
        taken = set(held)
        return [example for example in examples if example not in taken], held
    return [example for example in examples if example.text.strip() not in inside], held
