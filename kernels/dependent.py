"""Dependent launches: a kernel is on the multiprocessors before the one in front of it has ended, and waits there.

So the launch itself, some microseconds, overlaps with the end of that kernel. It takes compute capability 9.0, and
PFENGINE_DEPENDENT_LAUNCHES=1 switches it on: no GPU has measured it yet.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from ..errors import ConfigError
from ..options import switch

SWITCH = "PFENGINE_DEPENDENT_LAUNCHES"
OLDEST = (9, 0)  # compute capability
IS_ON = switch(SWITCH, default=False) and os.environ.get("TRITON_INTERPRET") != "1"
DEPENDENT = tl.constexpr(IS_ON)


def check(capability: tuple[int, int]) -> None:
    """Raise ConfigError for a GPU that has no dependent launches, and would not run what is compiled for them."""
    if capability < OLDEST:
        raise ConfigError(
            f"{SWITCH} is 1, and this GPU has compute capability {'.'.join(map(str, capability))}; dependent launches "
            "take 9.0, so unset it"
        )


@triton.jit
def wait_for_turn():
    """What every kernel does before it reads or writes anything.

    The next one may come to the multiprocessors, where all programs of this one are there or have ended. Then this one
    waits until all of those before it have ended and what they wrote can be read. It does so even if it has nothing to
    do: as the next one waits for this one alone, it would not wait for those before it otherwise.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
