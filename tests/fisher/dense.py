"""The oracle: F of an example from its dense Jacobian in float64, by definition, one example at a time."""

import torch
from torch.func import jacrev
from torch.nn import functional


def nll(likelihood, z, y):
    """-log p of one label, up to a constant."""
    if likelihood == "categorical":
        return functional.cross_entropy(z, y)
    if likelihood == "bernoulli":
        return functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
    return (z - y).square().sum() / 2


def a_label(likelihood, z):
    """Some label: the second derivative of -log p is the same for all of them."""
    return torch.tensor(0) if likelihood == "categorical" else torch.zeros_like(z)


def jacobians(model, x):
    """Outputs (positions, K) of one example, and their Jacobian (positions, K, numbers of all parameters)."""
    params = [p for p in model.parameters() if p.requires_grad]
    z = model(x.unsqueeze(0)).squeeze(0)
    rows = []
    for one in z.flatten():
        found = torch.autograd.grad(one, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(p.new_zeros(p.shape) if g is None else g).flatten() for p, g in zip(params, found, strict=True)]
            )
        )
    z = z.detach().reshape(-1, z.shape[-1])
    return z, torch.stack(rows).reshape(*z.shape, -1)


def matrices(model, x, y, likelihood="categorical", estimator="exact", unit="example", ignore=-100):
    """The dense Fisher matrix of one example, (numbers, numbers), and how many of its labels count.

    Per example with the gradient summed over labels, or per token, summed over them.
    """
    z, J = jacobians(model, x)
    y = y.reshape(z.shape[0], *y.shape[y.dim() - (0 if likelihood == "categorical" else 1) :])
    counts = [t for t in range(z.shape[0]) if likelihood != "categorical" or y[t] != ignore]
    F = torch.zeros(J.shape[-1], J.shape[-1], dtype=J.dtype)
    scores = torch.zeros(J.shape[-1], dtype=J.dtype)
    for t in counts:
        if estimator == "exact":
            H = jacrev(jacrev(lambda z: nll(likelihood, z, a_label(likelihood, z))))(z[t])
            F += J[t].T @ H @ J[t]
        else:
            score = jacrev(lambda z, t=t: nll(likelihood, z, y[t]))(z[t]) @ J[t]
            scores += score
            if unit == "token":
                F += torch.outer(score, score)
    if estimator == "empirical" and unit == "example":
        F = torch.outer(scores, scores)
    return F, len(counts)


def diagonal(model, inputs, targets, unit="example", **how):
    """name -> F over a batch, by definition."""
    total, units = 0.0, 0
    for x, y in zip(inputs, targets, strict=True):
        F, labels = matrices(model, x, y, unit=unit, **how)
        total = total + F.diagonal()
        units += labels if unit == "token" else labels > 0
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    parts = torch.split(total / units, [shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
