"""NaturalAdam, a published reading of FAdam that keeps Adam's order of operations, in NumPy float64."""

import numpy as np
from tests.oracle.fadam import quotient, rms


def naturaladam(
    p, g, state=None, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, eps_decay=1e-3, max_norm=1.0
):
    """One step: the new parameter and the new state. The step is held to an L2 norm; the decay is not."""
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    if state is None:
        state = {"step": 0, "s": np.zeros_like(p), "m": np.zeros_like(p)}
    t = state["step"] + 1
    beta1, beta2 = betas
    m = beta1 * state["m"] + (1.0 - beta1) * g
    s = beta2 * state["s"] + (1.0 - beta2) * g**2
    mhat = m / (1.0 - beta1**t)
    shat = s / (1.0 - beta2**t)
    denominator = np.sqrt(shat) + eps / (1.0 + eps_decay * t)
    d = quotient(mhat, denominator)
    norm = rms(d) * np.sqrt(d.size)
    if max_norm is not None and norm > max_norm:
        d = d * (max_norm / norm)
    return p - lr * d - lr * weight_decay * quotient(p, denominator), {"step": t, "s": s, "m": m}
