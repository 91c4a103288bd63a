"""AdaFisher and AdaFisherW, Algorithm 1 of arXiv:2405.16397, in NumPy float64."""

import numpy as np


def minmax(x):
    """(x - min)/(max - min); 1 where all elements are equal (D15)."""
    x = np.asarray(x, np.float64)
    return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.ones_like(x)


def with_one(h):
    """Inputs of a layer that has a bias: (units, in) -> (units, in + 1)."""
    return np.concatenate([h, np.ones((len(h), 1))], axis=1)


def one_hot(tokens, rows):
    """What an embedding's input is as that of a linear layer: any shape of tokens -> (units, rows)."""
    return np.eye(rows)[np.asarray(tokens).reshape(-1)]


def patches(x, kernel, stride, dilation, pad, mode="constant"):
    """Every patch of every image: (batch, channels, *space) -> (batch * positions, channels * prod(kernel)).

    ``pad``: (before, after) per spatial dimension; ``mode``: as np.pad has it.
    """
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), *pad], mode=mode)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    positions = [(size - r) // step + 1 for size, r, step in zip(x.shape[2:], reach, stride, strict=True)]
    found = []
    for index in np.ndindex(*positions):
        corner = [i * step for i, step in zip(index, stride, strict=True)]
        window = tuple(slice(c, c + r, d) for c, r, d in zip(corner, reach, dilation, strict=True))
        found.append(x[(slice(None), slice(None), *window)].reshape(len(x), -1))
    return np.concatenate(found)


def factors(h, s, known=None, *, gammas=(0.8, 0.8), normalize="after"):
    """One update of a layer's factors from its inputs (units, in [+1]) and output gradients (units, out): (H, S)."""
    new = [np.mean(np.asarray(x, np.float64) ** 2, axis=0) for x in (h, s)]
    return tuple(average(k, n, gammas, normalize) for k, n in zip(known or (None, None), new, strict=True))


def average(known, new, gammas=(0.8, 0.8), normalize="after"):
    """The moving average of one factor, which starts at 0, or at 1 where minmax comes before it (D14)."""
    if normalize == "before":
        new = minmax(new)
    if known is None:
        known = np.full_like(new, 1.0 if normalize == "before" else 0.0)
    return gammas[0] * known + (1.0 - gammas[1]) * new


def kronecker(H, S, *, damping=1e-3, normalize="after"):
    """F = S' outer H' + lambda: (out, in [+1])."""
    if normalize == "after":
        H, S = minmax(H), minmax(S)
    return np.outer(S, H) + damping


def elementwise(f, *, damping=1e-3, normalize="after"):
    """F of a parameter without a layer, from the moving average of its g^2."""
    return (minmax(f) if normalize == "after" else f) + damping


def adafisher(
    p,
    g,
    state=None,
    *,
    F=None,
    lr=1e-3,
    beta=0.9,
    gammas=(0.8, 0.8),
    damping=1e-3,
    weight_decay=0.0,
    update_every=1,
    normalize="after",
    decoupled=False,
):
    """One step in the metric F: the new parameter and the new state.

    Without an F the parameter is one of no layer, and its metric is made of its own gradients (D17).
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    if state is None:
        state = {"step": 0, "m": np.zeros_like(p)}
    t = state["step"] + 1
    f = state.get("f")
    if F is None:
        if (t - 1) % update_every == 0:
            f = average(f, g**2, gammas, normalize)
        F = elementwise(f, damping=damping, normalize=normalize)
    if not decoupled:
        g = g + weight_decay * p
    m = beta * state["m"] + (1.0 - beta) * g
    mhat = m / (1.0 - beta**t)
    step = mhat / F + weight_decay * p if decoupled else mhat / F
    return p - lr * step, {"step": t, "m": m, "f": f}


def adafisherw(p, g, state=None, **options):
    """As `adafisher`, with decoupled weight decay."""
    return adafisher(p, g, state, **options, decoupled=True)
