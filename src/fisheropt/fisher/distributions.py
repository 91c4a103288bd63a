"""What the outputs of a model say about labels: -log p in nats, its Fisher information, and labels drawn from it.

A label is what one row of numbers predicts. Outputs are ``(N, *positions, K)``, N examples with K numbers for each of
their labels, and whatever there is one of per label has shape ``(N, *positions)``:

===============  ======================  ===============================  ==========================================
likelihood       outputs z               targets                          -log p of a label
===============  ======================  ===============================  ==========================================
``categorical``  K logits                class indices (N, *positions)    ``logsumexp(z) - z_y``
``bernoulli``    K logits                0 or 1, shaped as the outputs    ``sum_k softplus(z_k) - y_k z_k``
``gaussian``     K means, variance 1     numbers, shaped as the outputs   ``sum_k (z_k - y_k)^2 / 2 + log(2 pi)/2``
===============  ======================  ===============================  ==========================================

The last two also take outputs of shape (N,), one number per example. The Fisher information of a label with respect to
z is F_z = L L', with the columns of L

    categorical   sqrt(p_k) (e_k - p), so that F_z = diag(p) - p p'
    bernoulli     sqrt(p_k (1 - p_k)) e_k
    gaussian      e_k
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Likelihood", "NegativeLogLikelihood", "full_likelihood_of", "likelihood_of", "per_label"]

NegativeLogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""``nll(outputs, targets)``: -log p in nats, one number per label: (N, *positions)."""


class Likelihood(Protocol):
    """A distribution of labels with everything that can be known of it."""

    name: str

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log p of each label, (N, *positions)."""
        ...

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that are not labels of these outputs, with a ValueError."""
        ...

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Targets drawn from the model."""
        ...

    def column(self, outputs: Tensor, k: int) -> Tensor:
        """Column k of L for every label, shaped as the outputs."""
        ...

    def product(self, outputs: Tensor, u: Tensor) -> Tensor:
        """F_z u for every label; ``u`` is shaped as the outputs."""
        ...

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        """KL(p_outputs || p_others) of every label, (N, *positions)."""
        ...


class Categorical:
    name = "categorical"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(
                f"targets must be class indices (integers) for likelihood='categorical', got {targets.dtype}; "
                "probabilities are no labels: for soft targets pass your own likelihood=nll(outputs, targets)"
            )
        if targets.shape != outputs.shape[:-1]:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} need targets of shape {tuple(outputs.shape[:-1])}, one per "
                f"label with the classes last, got {tuple(targets.shape)}; where the classes are another dimension, "
                "wrap the model so that it returns outputs.movedim(1, -1)"
            )

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        p = outputs.double().softmax(-1).flatten(0, -2)
        return torch.multinomial(p, 1, generator=generator).view(outputs.shape[:-1])

    def column(self, outputs: Tensor, k: int) -> Tensor:
        p = outputs.softmax(-1)
        column = -p
        column[..., k] += 1
        return column * p[..., k : k + 1].sqrt()

    def product(self, outputs: Tensor, u: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        return p * (u - (p * u).sum(-1, keepdim=True))

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        log_p = outputs.log_softmax(-1)
        return (log_p.exp() * (log_p - others.log_softmax(-1))).sum(-1)


class _Elementwise:
    """K independent numbers per label."""

    name: str

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.shape != outputs.shape:
            raise ValueError(
                f"targets must be shaped as the outputs for likelihood={self.name!r}: got {tuple(targets.shape)} and "
                f"{tuple(outputs.shape)}"
            )

    def column(self, outputs: Tensor, k: int) -> Tensor:
        column = torch.zeros_like(outputs)
        if outputs.dim() == 1:
            column.fill_(1)
        else:
            column[..., k] = 1
        return self.product(outputs, column).sqrt()  # diagonal, with entries in [0, 1] where the column has its 1

    def product(self, outputs: Tensor, u: Tensor) -> Tensor:
        raise NotImplementedError


class Bernoulli(_Elementwise):
    name = "bernoulli"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _over_label(functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none"))

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(outputs.sigmoid(), generator=generator)

    def product(self, outputs: Tensor, u: Tensor) -> Tensor:
        return outputs.sigmoid() * (-outputs).sigmoid() * u

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        log_p, log_1_p = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
        terms = log_p.exp() * (log_p - functional.logsigmoid(others))
        return _over_label(terms + log_1_p.exp() * (log_1_p - functional.logsigmoid(-others)))


class Gaussian(_Elementwise):
    name = "gaussian"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _over_label((outputs - targets.to(outputs)).square() / 2 + math.log(2 * math.pi) / 2)

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
        return outputs + noise

    def product(self, outputs: Tensor, u: Tensor) -> Tensor:
        return u

    def kl(self, outputs: Tensor, others: Tensor) -> Tensor:
        return _over_label((outputs - others).square() / 2)


_KNOWN: dict[str, Likelihood] = {known.name: known for known in (Categorical(), Bernoulli(), Gaussian())}


def _over_label(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.sum(-1)


def per_label(numbers: Tensor, outputs: Tensor) -> Tensor:
    """One number per label, (N, *positions), to multiply outputs with."""
    return numbers.reshape(numbers.shape + (1,) * (outputs.dim() - numbers.dim()))


def likelihood_of(likelihood: str | NegativeLogLikelihood) -> tuple[str, Likelihood | NegativeLogLikelihood]:
    """What is named, or the caller's own, with its name.

    Raises:
        ValueError: there is none of that name.
        TypeError: it is neither a name nor a function.
    """
    if isinstance(likelihood, str):
        if likelihood not in _KNOWN:
            raise ValueError(
                f"likelihood must be one of {', '.join(map(repr, _KNOWN))} or a function, got {likelihood!r}"
            )
        return likelihood, _KNOWN[likelihood]
    if not callable(likelihood):
        raise TypeError(f"likelihood must be a name or nll(outputs, targets), got {type(likelihood).__name__}")
    named: Any = likelihood
    return str(getattr(named, "__name__", type(named).__name__)), likelihood


def full_likelihood_of(likelihood: str, why: str) -> Likelihood:
    """The one that is named.

    Raises:
        ValueError: it is a function, of which only -log p is known; ``why`` says what needs more.
    """
    _, found = likelihood_of(likelihood)
    if isinstance(likelihood, str):
        return found  # type: ignore[return-value]
    raise ValueError(f"{why} must know the distribution, and a function gives -log p only; name one of {list(_KNOWN)}")
