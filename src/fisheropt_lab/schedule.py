"""The learning-rate schedule every optimizer gets: linear warm-up, then a cosine down to zero."""

from __future__ import annotations

import math


def lr_scale(step: int, steps: int, warmup: int) -> float:
    """The factor on the peak learning rate at `step`, counted from 0.

    The first step already moves (1 / warmup), step `warmup - 1` is the first at the peak, and the cosine would reach
    zero at `step == steps`, one after the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
