"""FAdafactor, Algorithm 2 of arXiv:2405.12807, in NumPy float64."""

import numpy as np
from tests.oracle.fadam import fadam, lines_9_to_14, mean_square, new_share, quotient


def factored_dims(shape, min_dim_size_to_factor):
    """(row dim, column dim): the two largest, later ones among equals, in their own order (D10), or None."""
    if len(shape) < 2:
        return None
    by_size = sorted(range(len(shape)), key=lambda dim: (shape[dim], dim))
    row, column = sorted(by_size[-2:])
    return None if min(shape[row], shape[column]) < min_dim_size_to_factor else (row, column)


def outer_over_sum(R, C, row, column):
    """f = outer(R, C) / sum(R), per batch element; 0 where sum(R) is 0 (D11).

    R lacks the column dimension and C the row dimension: each gets a dimension of size 1 where it lacks one.
    """
    R, C = np.expand_dims(R, column), np.expand_dims(C, row)
    return quotient(R, np.sum(R, axis=row, keepdims=True)) * C


def fadafactor(
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
    min_dim_size_to_factor=128,
    parts=None,
):
    """One step: the new parameter and the new state. A tensor that is not factored follows FAdam, also with parts."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options |= {"eps2": eps2, "clip": clip, "rho": rho}
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    dims = factored_dims(p.shape, min_dim_size_to_factor)
    if dims is None:
        return fadam(p, g, state, parts=parts, **options)
    row, column = dims
    if state is None:
        lacking = {dim: [size for i, size in enumerate(p.shape) if i != dim] for dim in dims}
        state = {"step": 0, "R": np.ones(lacking[column]), "C": np.ones(lacking[row]), "m": np.zeros_like(p)}
    t = state["step"] + 1
    new = new_share(betas[1], t)
    g2 = mean_square(g, parts)
    R = (1.0 - new) * state["R"] + new * np.sum(g2, axis=column)
    C = (1.0 - new) * state["C"] + new * np.sum(g2, axis=row)
    p, m = lines_9_to_14(p, g, outer_over_sum(R, C, row, column), state["m"], **options)
    return p, {"step": t, "R": R, "C": C, "m": m}
