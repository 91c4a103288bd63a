"""FAdam, Algorithm 1 of arXiv:2405.12807, in NumPy float64: slow, plain and independent of the library."""

import numpy as np


def rms(x):
    """Root of the mean square of all elements, scaled by the largest so that no square leaves float64."""
    largest = np.max(np.abs(x), initial=0.0)
    if largest == 0.0:
        return 0.0
    return largest * np.sqrt(np.mean((x / largest) ** 2))


def clipped(x, c):
    """x / max(1, rms(x) / c); c=None leaves x alone (D2, D9)."""
    return x if c is None else x / max(1.0, rms(x) / c)


def quotient(numerator, denominator):
    """numerator / denominator, and 0 where the denominator is exactly 0 (D5)."""
    nonzero = denominator != 0.0
    return np.where(nonzero, numerator / np.where(nonzero, denominator, 1.0), 0.0)


def new_share(beta2, t):
    """1 - b2hat, the weight of the newest square: (1 - beta2) / (1 - beta2^t), exactly 1 at t = 1 (D4b)."""
    return (1.0 - beta2) / (1.0 - beta2**t)


def mean_square(g, parts):
    """g^2, or the mean of the squares of its parts."""
    return g**2 if parts is None else np.mean(np.asarray(parts, np.float64) ** 2, axis=0)


def metric(f, g, *, eps, eps2, rho):
    """f^rho + ehat^(2 rho), the denominator that lines 9 and 12 share (D8)."""
    ehat = eps if eps2 is None else min(eps, eps2 * rms(g))
    return f**rho + ehat ** (2.0 * rho)


def lines_9_to_14(p, g, f, m, *, lr, betas, eps, weight_decay, eps2, clip, rho):
    """Everything after the second moment, which FAdafactor shares."""
    denominator = metric(f, g, eps=eps, eps2=eps2, rho=rho)
    gbar = clipped(quotient(g, denominator), clip)
    m = betas[0] * m + (1.0 - betas[0]) * gbar
    gw = clipped(quotient(p, denominator), clip)
    return p - lr * (m + weight_decay * gw), m


def fadam(
    p,
    g,
    state=None,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-3,
    eps2=0.01,
    clip=1.0,
    rho=0.5,
    parts=None,
):
    """One step: the new parameter and the new state, from arrays that are left as they were.

    parts: the gradients of micro-batches, whose mean is g: line 7 then takes the mean of their squares (Equation 20).
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    if state is None:
        state = {"step": 0, "f": np.ones_like(p), "m": np.zeros_like(p)}
    t = state["step"] + 1
    new = new_share(betas[1], t)
    f = (1.0 - new) * state["f"] + new * mean_square(g, parts)
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    p, m = lines_9_to_14(p, g, f, state["m"], eps2=eps2, clip=clip, rho=rho, **options)
    return p, {"step": t, "f": f, "m": m}
