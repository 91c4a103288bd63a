"""Lines 7 to 14 of Algorithm 1 over a run of elements: fast in float32, and carefully in float64 (`_metric`).

Functions over pointers: an array may be indexed from its end, which keeps a loop from vectorising.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from fisheropt.kernels.numba._compile import elementwise, summing
from fisheropt.kernels.numba._memory import keep, load
from fisheropt.kernels.numba._metric import LARGEST, limited, raised

__all__ = [
    "fisher",
    "move",
    "move_carefully",
    "move_without_momentum",
    "reciprocal",
    "sum_both",
    "sum_careful",
    "sum_g",
    "sum_g_careful",
    "sum_gbar",
]

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise
def fisher(f, g, b2hat, new):
    """b2hat f + (1 - b2hat) g^2, saturating.                                                                line 7"""
    f = b2hat * f + new * (g * g)
    return LARGEST if f > LARGEST else f


@elementwise
def reciprocal(f, rho, ehat):
    """1 / (f^rho + ehat^(2 rho)), and 0 where that is 0 (SPEC D5).                                 lines 9 and 12"""
    d = raised(f, rho) + ehat
    return _ONE / d if d != _ZERO else _ZERO


@summing
def sum_g(g, i, end):
    """Sum of g^2, fast."""
    total = _ZERO
    for j in range(i, end):
        total += load(g, j) * load(g, j)
    return np.float64(total)


@summing
def sum_g_careful(g, i, end):
    """Sum of g^2."""
    total = 0.0
    for j in range(i, end):
        x = np.float64(load(g, j))
        total += x * x
    return total


@summing
def sum_gbar(g, f, i, end, b2hat, new, rho, ehat):
    """Sum of gbar^2, fast."""
    gbar2 = _ZERO
    for j in range(i, end):
        x = load(g, j)
        gbar = x * reciprocal(fisher(load(f, j), x, b2hat, new), rho, ehat)  # line 9
        gbar2 += gbar * gbar
    return np.float64(gbar2), 0.0


@summing
def sum_both(p, g, f, i, end, b2hat, new, rho, ehat):
    """Sums of gbar^2 and gw^2, fast."""
    gbar2, gw2 = _ZERO, _ZERO
    for j in range(i, end):
        x = load(g, j)
        r = reciprocal(fisher(load(f, j), x, b2hat, new), rho, ehat)
        gbar = x * r  # line 9
        gw = load(p, j) * r  # line 12
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return np.float64(gbar2), np.float64(gw2)


@elementwise
def careful_quotients(p, g, f, b2hat, new, rho, ehat):
    """f, gbar and gw before the clips, in float64 and from float64 numbers; f is rounded to what can be stored."""
    f = limited(b2hat * f + new * (g * g), np.float64(LARGEST))  # line 7
    f = np.float64(np.float32(f))
    d = (math.sqrt(f) if rho == 0.5 else f if rho == 1.0 else f**rho) + ehat
    if d == 0.0:
        return f, 0.0, 0.0
    return f, limited(g / d, np.float64(LARGEST)), limited(p / d, np.float64(LARGEST))  # lines 9 and 12


@elementwise
def sum_careful(p, g, f, i, end, b2hat, new, rho, ehat):
    """Sums of gbar^2 and gw^2."""
    gbar2, gw2 = 0.0, 0.0
    for j in range(i, end):
        x = np.float64(load(g, j))
        _, gbar, gw = careful_quotients(np.float64(load(p, j)), x, np.float64(load(f, j)), b2hat, new, rho, ehat)
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return gbar2, gw2


@elementwise
def move(p, g, f, m, i, end, b2hat, new, rho, ehat, beta1, of_gbar, lr, of_gw, key_p, key_f, key_m):
    """Lines 7 to 14; ``of_gbar``: (1 - beta1) times the clip of line 10; ``of_gw``: eta lambda times that of 13."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        f_j = fisher(load(f, j), x, b2hat, new)
        r = reciprocal(f_j, rho, ehat)
        m_j = beta1 * load(m, j) + of_gbar * limited(x * r, LARGEST)  # lines 9 to 11
        keep(f, j, f_j, key_f)
        keep(m, j, m_j, key_m)
        keep(p, j, theta - (lr * m_j + of_gw * limited(theta * r, LARGEST)), key_p)  # lines 12 to 14


@elementwise
def move_without_momentum(p, g, f, i, end, b2hat, new, rho, ehat, of_gbar, lr, of_gw, key_p, key_f):
    """`move` with m = gbar."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        f_j = fisher(load(f, j), x, b2hat, new)
        r = reciprocal(f_j, rho, ehat)
        step = lr * (of_gbar * limited(x * r, LARGEST)) + of_gw * limited(theta * r, LARGEST)
        keep(f, j, f_j, key_f)
        keep(p, j, theta - step, key_p)


@elementwise
def move_carefully(p, g, f, m, has_m, i, end, b2hat, new, rho, ehat, beta1, of_gbar, lr, of_gw, key_p, key_f, key_m):
    """`move`, or `move_without_momentum`, in float64."""
    for j in range(i, end):
        x, theta = np.float64(load(g, j)), np.float64(load(p, j))
        f_j, gbar, gw = careful_quotients(theta, x, np.float64(load(f, j)), b2hat, new, rho, ehat)
        m_j = of_gbar * gbar
        if has_m:
            m_j += beta1 * np.float64(load(m, j))
            keep(m, j, np.float32(limited(m_j, np.float64(LARGEST))), key_m)
        keep(f, j, np.float32(f_j), key_f)
        keep(p, j, np.float32(limited(theta - (lr * m_j + of_gw * gw), np.float64(LARGEST))), key_p)
