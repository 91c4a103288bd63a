"""How good AdaFisher's approximation is: the Kronecker product of mean squares against the diagonal itself.

Of a layer with input h (a 1 appended where it has a bias) and gradient s of -log p with respect to its output, unit u,
and positions t within it, the diagonal of the empirical Fisher information and what AdaFisher takes for it are::

    D[o, i] = mean_u (sum_t s_uto h_uti)^2                                  exact, per unit
    K[o, i] = T (mean_ut s_uto^2) (mean_ut h_uti^2)                         arXiv:2405.16397, Section 3

with T positions per unit. K is D if squares of s and h are uncorrelated, and positions too. Besides K there is the best
that any product can do: the leading singular pair of the matrix D, whose share of its norm is ``best_cosine``. What is
missing from ``best_cosine`` to 1 no Kronecker product has; what is missing from K's cosine to it, better factors would.

AdaFisher itself divides by minmax(S) outer minmax(H) + lambda, which also subtracts the smallest entries; that is not
looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fisheropt.fisher.batches import batches
from fisheropt.fisher.compare import Agreement, compare_fisher
from fisheropt.fisher.distributions import NegativeLogLikelihood
from fisheropt.fisher.estimate import fisher_diag
from fisheropt.fisher.factors import EmbeddingLayer, Layer, layer_of
from fisheropt.fisher.models import call, check_model, trainable, undisturbed
from fisheropt.fisher.questions import asked
from fisheropt.fisher.recording import Recording

__all__ = ["KroneckerGap", "KroneckerLayer", "kron_diag_gap"]


class KroneckerLayer(NamedTuple):
    """Of one weight.

    Attributes:
        agreement: of K with D.
        best_cosine: of the best product with D, in [0, 1], >= the cosine of K.
    """

    agreement: Agreement
    best_cosine: float


@dataclass(frozen=True)
class KroneckerGap:
    """What `kron_diag_gap` found.

    Attributes:
        layers: name of a weight -> how its product agrees.
        units: how many were averaged.
    """

    layers: Mapping[str, KroneckerLayer]
    units: int

    def __str__(self) -> str:
        width = max(map(len, self.layers), default=0)
        lines = [f"{'':{width}}  {'entries':>9}  {'cosine':>6}  {'best':>6}  {'trace ratio':>11}  {'ranks':>6}"]
        lines += [
            f"{name:{width}}  {a.entries:>9,}  {a.cosine:>6.3f}  {best:>6.3f}  {a.trace_ratio:>11.3g}  "
            f"{a.rank_correlation:>6.3f}"
            for name, (a, best) in self.layers.items()
        ]
        return "\n".join(lines)


def kron_diag_gap(
    model: nn.Module,
    data: Iterable[Any],
    *,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | NegativeLogLikelihood = "categorical",
    ignore_index: int = -100,
    max_examples: int | None = None,
) -> KroneckerGap:
    """Compare AdaFisher's factors with the diagonal they stand for, on the labels of the data.

    Args:
        model, data, likelihood, ignore_index, max_examples: as for `fisher_diag`; ``data`` is kept. Units are examples.

    Returns:
        For the weights of Linear, Conv and Embedding layers. Weights that several layers share, and those of layers
        that were not called, are left out.

    Raises:
        ValueError: as `fisher_diag`; and where no layer has factors.
    """
    check_model(model)
    kept = list(batches(data, max_examples))
    layers = _unshared_layers(model)
    if not layers:
        raise ValueError("kron_diag_gap looks at Linear, Conv and Embedding layers, and the model has none of its own")
    sums: dict[nn.Module, _Sums] = {}
    question = asked(
        likelihood, "example", None, ignore_index, estimator="empirical", estimators=("empirical",), max_examples=None
    )
    nll = question.likelihood if callable(question.likelihood) else question.likelihood.nll
    units = 0
    for batch in kept:
        with undisturbed(model), Recording(layers) as recording:
            outputs = call(model, batch.inputs)
        counts, targets = question.labels(outputs, batch)
        gradients = torch.autograd.grad(
            nll(outputs, targets)[counts].sum(), [c.edge for c in recording.calls], allow_unused=True
        )
        units += question.units(counts)[0]
        for c, s in zip(recording.calls, gradients, strict=True):
            if s is not None:
                sums.setdefault(c.module, _Sums(layers[c.module][1])).add(c.input.detach(), s)
    pairs = [(b.inputs, b.targets) for b in kept]
    D = fisher_diag(model, pairs, likelihood=likelihood, estimator="empirical", ignore_index=ignore_index)
    compared = {}
    for module, (name, layer) in layers.items():
        if module in sums and name in D:
            K = sums[module].product(layer, units, D[name].shape)
            compared[name] = KroneckerLayer(
                compare_fisher({name: K}, {name: D[name]}).total, _best_cosine(D[name], layer)
            )
    return KroneckerGap(compared, units)


class _Sums:
    """Over everything one layer saw."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.H: Tensor | float = 0.0
        self.S: Tensor | float = 0.0
        self.positions = 0

    def add(self, x: Tensor, s: Tensor) -> None:
        self.H = self.H + self.layer.input_squares(x)
        S, positions = self.layer.output_squares(s)
        self.S = self.S + S
        self.positions += positions

    def product(self, layer: Layer, units: int, shape: torch.Size) -> Tensor:
        assert isinstance(self.H, Tensor)
        assert isinstance(self.S, Tensor)
        H = self.H / self.positions
        H = torch.cat([H, H.new_ones(1)]) if layer.bias else H
        rows, columns = layer.placed("weight", self.S / self.positions, H)
        return (rows * columns).expand(shape) * (self.positions / units)


def _unshared_layers(model: nn.Module) -> dict[nn.Module, tuple[str, Layer]]:
    """Module -> name of its weight and its layer, where the weight is trained and nobody else's."""
    names = {p: name for name, p in trainable(model).items()}
    owners: dict[Tensor, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None:
                owners[p] = owners.get(p, 0) + 1
    found = {}
    for module in model.modules():
        layer, weight = layer_of(module), module._parameters.get("weight")
        if layer is not None and weight is not None and weight in names and owners[weight] == 1:
            found[module] = (names[weight], layer)
    return found


def _best_cosine(D: Tensor, layer: Layer) -> float:
    """The cosine of the best product of a vector per output and one per input, group by group."""
    D = D.double()
    matrix = D if isinstance(layer, EmbeddingLayer) else D.flatten(1)
    groups = getattr(layer, "groups", 1)
    blocks = matrix.reshape(groups, -1, matrix.shape[1])
    norm = float(matrix.norm())
    return math.sqrt(sum(float(torch.linalg.matrix_norm(b, 2)) ** 2 for b in blocks)) / norm if norm else math.nan
