"""FAdam with one change to Adam taken back, in NumPy float64: Algorithm 1 of arXiv:2405.12807 written out each time."""

import numpy as np
from tests.oracle.fadam import clipped, metric, new_share, quotient


def _moments(p, g, state, beta2):
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    state = state or {"step": 0, "f": np.ones_like(p), "m": np.zeros_like(p)}
    t = state["step"] + 1
    new = new_share(beta2, t)
    return p, g, t, (1.0 - new) * state["f"] + new * g**2, state["m"]


def momentum_first(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    d = metric(f, g, eps=eps, eps2=eps2, rho=rho)
    m = betas[0] * m + (1 - betas[0]) * g
    step = clipped(quotient(m, d), clip) + weight_decay * clipped(quotient(p, d), clip)
    return p - lr * step, {"step": t, "f": f, "m": m}


def corrected_momentum(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    d = metric(f, g, eps=eps, eps2=eps2, rho=rho)
    m = betas[0] * m + (1 - betas[0]) * clipped(quotient(g, d), clip)
    step = m / (1 - betas[0] ** t) + weight_decay * clipped(quotient(p, d), clip)
    return p - lr * step, {"step": t, "f": f, "m": m}


def no_clip(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    d = metric(f, g, eps=eps, eps2=eps2, rho=rho)
    m = betas[0] * m + (1 - betas[0]) * quotient(g, d)
    return p - lr * (m + weight_decay * quotient(p, d)), {"step": t, "f": f, "m": m}


def decoupled_decay(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    d = metric(f, g, eps=eps, eps2=eps2, rho=rho)
    m = betas[0] * m + (1 - betas[0]) * clipped(quotient(g, d), clip)
    return p - lr * (m + weight_decay * p), {"step": t, "f": f, "m": m}


def constant_epsilon(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    d = f**rho + eps ** (2 * rho)
    m = betas[0] * m + (1 - betas[0]) * clipped(quotient(g, d), clip)
    return p - lr * (m + weight_decay * clipped(quotient(p, d), clip)), {"step": t, "f": f, "m": m}


def adam_like(p, g, state=None, *, lr, betas, eps, eps2, clip, rho, weight_decay):
    p, g, t, f, m = _moments(p, g, state, betas[1])
    m = betas[0] * m + (1 - betas[0]) * g
    step = quotient(m / (1 - betas[0] ** t), f**rho + eps ** (2 * rho))
    return p - lr * (step + weight_decay * p), {"step": t, "f": f, "m": m}
