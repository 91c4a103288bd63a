"""Adafactor as the FAdam paper prints it (Algorithm 4), in NumPy float64."""

import numpy as np
from tests.oracle.fadafactor import factored_dims, outer_over_sum
from tests.oracle.fadam import clipped, new_share, quotient


def adafactor(
    p,
    g,
    state=None,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-30,
    weight_decay=0.0,
    clip=1.0,
    min_dim_size_to_factor=128,
):
    """One step: the new parameter and the new state. m carries the learning rate, the decay does not."""
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    dims = factored_dims(p.shape, min_dim_size_to_factor)
    t = 1 if state is None else state["step"] + 1
    new = new_share(betas[1], t)
    square = g**2 + eps

    def average(slot, value):
        old = 0.0 if state is None else state[slot]
        return (1.0 - new) * old + new * value

    if dims is None:
        slots = {"f": average("f", square)}
        f = slots["f"]
    else:
        row, column = dims
        slots = {"R": average("R", np.sum(square, axis=column)), "C": average("C", np.sum(square, axis=row))}
        f = outer_over_sum(slots["R"], slots["C"], row, column)
    u = clipped(quotient(g, np.sqrt(f)), clip)
    m = betas[0] * (0.0 if state is None else state["m"]) + (1.0 - betas[0]) * lr * u
    return p - m - weight_decay * p, {"step": t, **slots, "m": m}
