"""Adam as the FAdam paper prints it (Algorithm 3), in NumPy float64."""

import numpy as np
from tests.oracle.fadam import clipped, quotient


def adam(p, g, state=None, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip=1.0):
    """One step: the new parameter and the new state, whose moments stay uncorrected (D12)."""
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    if state is None:
        state = {"step": 0, "f": np.zeros_like(p), "m": np.zeros_like(p)}
    t = state["step"] + 1
    beta1, beta2 = betas
    f = beta2 * state["f"] + (1.0 - beta2) * g**2
    m = beta1 * state["m"] + (1.0 - beta1) * g
    fhat = f / (1.0 - beta2**t)
    mhat = m / (1.0 - beta1**t)
    update = clipped(quotient(mhat, np.sqrt(fhat) + eps), clip)
    return p - lr * (update + weight_decay * p), {"step": t, "f": f, "m": m}
