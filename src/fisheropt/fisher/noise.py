"""How much of a gradient is noise: its squared mean and its variance, and the batch size at which they are equal.

A loss that is a mean over B independent units has a gradient of mean mu and variance s2/B per parameter, whose square
an optimizer averages into f: E[f] = mu^2 + s2/B (SPEC section 5). From the gradients g_j of k batches of n_j units, N
in all, without bias and for unequal batches too::

    gbar = sum_j n_j g_j / N
    s2   = sum_j n_j (g_j - gbar)^2 / (k - 1)
    mu^2 = gbar^2 - s2 / N

The simple noise scale of McCandlish et al., *An Empirical Model of Large-Batch Training*, arXiv:1812.06162, Equation
2.9, is the batch size at which signal and noise are equal::

    B_simple = sum s2 / sum mu^2

Below it, twice the batch is nearly as good as twice the steps; above it, hardly anything is gained. Where B is far
below it, B f is an estimate of the Fisher information; where B is far above, f is mostly the square of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisheropt.fisher.batches import batches
from fisheropt.fisher.models import call, trainable, undisturbed

__all__ = ["BatchGradient", "Noise", "NoiseSplit", "batch_gradients", "noise_split"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, targets)``: a mean over the units of a batch, 0-d."""


class BatchGradient(NamedTuple):
    """``units``: of the batch; ``gradients``: of its mean loss, name -> tensor."""

    units: int
    gradients: dict[str, Tensor]


def batch_gradients(
    model: nn.Module, data: Iterable[Any], loss_fn: LossFunction, max_examples: int | None = None
) -> Iterator[BatchGradient]:
    """The gradient of the loss of each batch; a parameter that takes no part has zeros. ``.grad`` stays as it is."""
    parameters = trainable(model)
    for batch in batches(data, max_examples):
        with torch.inference_mode(False), torch.enable_grad():
            loss = loss_fn(call(model, batch.inputs), batch.targets)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), found, strict=True)
        }
        yield BatchGradient(batch.size, gradients)


class Noise(NamedTuple):
    """Of one tensor, or of all.

    Attributes:
        entries: how many parameters.
        mean_square: sum of mu^2, unbiased, in [loss]^2/[p]^2; below zero where the noise hides it.
        variance: sum of s2, per unit, in [loss]^2/[p]^2.
        signal_to_noise: mean_square / variance, of a single unit.
        critical_batch: variance / mean_square, units: B_simple; inf where mean_square is not above zero.
    """

    entries: int
    mean_square: float
    variance: float
    signal_to_noise: float
    critical_batch: float


@dataclass(frozen=True)
class NoiseSplit:
    """What `noise_split` found.

    Attributes:
        mean_square: name -> mu^2 per parameter, unbiased: single entries may be below zero.
        variance: name -> s2 per parameter and unit.
        layers: name -> their sums.
        total: of all parameters.
        units: N.
        batches: k: the sums over many parameters are known to about sqrt(2/(k - 1)), single entries no better.
    """

    mean_square: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    layers: Mapping[str, Noise]
    total: Noise
    units: int
    batches: int

    def noise_share(self, batch_size: int) -> float:
        """The share of E[f] that is variance at this batch size, in [0, 1]."""
        noise = self.total.variance / batch_size
        return noise / (noise + max(0.0, self.total.mean_square))


def noise_split(
    model: nn.Module, data: Iterable[Any], loss_fn: LossFunction, *, max_examples: int | None = None
) -> NoiseSplit:
    """Split squared gradients into what repeats in every batch and what does not.

    Args:
        model: ``model(inputs)`` returns outputs; its ``.grad`` and random states stay as they are. Dropout is noise.
        data: independent batches ``(inputs, targets)``, at least two; sixteen tell more. Units are examples.
        loss_fn: ``loss_fn(outputs, targets)``: the mean loss over the examples of a batch.
        max_examples: stop after so many; None: never.

    Raises:
        ValueError: there are fewer than two batches.

    Source: McCandlish et al., arXiv:1812.06162, Section 2.2 and Appendix A.1; SPEC section 5.
    """
    k, N = 0, 0
    mean: dict[str, Tensor] = {}
    scatter: dict[str, Tensor] = {}  # sum_j n_j (g_j - gbar)^2, kept as batches come, without cancellation
    with undisturbed(model):
        for n, gradients in batch_gradients(model, data, loss_fn, max_examples):
            k, N = k + 1, N + n
            for name, g in gradients.items():
                g = g.double()
                if name not in mean:
                    mean[name], scatter[name] = g.clone(), torch.zeros_like(g)
                    continue
                difference = g - mean[name]
                mean[name] += difference * (n / N)
                scatter[name] += difference.square() * (n * (N - n) / N)
    if k < 2:
        raise ValueError(f"noise_split needs at least two batches to tell noise from signal, got {k}")
    variance = {name: x / (k - 1) for name, x in scatter.items()}
    mean_square = {name: g.square() - variance[name] / N for name, g in mean.items()}
    sums = {name: (x.numel(), float(mean_square[name].sum()), float(x.sum())) for name, x in variance.items()}
    total = _noise(*(sum(column) for column in zip(*sums.values(), strict=True)))
    return NoiseSplit(mean_square, variance, {name: _noise(*x) for name, x in sums.items()}, total, N, k)


def _noise(entries: int, mean_square: float, variance: float) -> Noise:
    return Noise(
        entries,
        mean_square,
        variance,
        mean_square / variance if variance else math.nan,
        variance / mean_square if mean_square > 0 else math.inf,
    )
