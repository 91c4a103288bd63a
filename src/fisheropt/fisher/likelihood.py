"""Is a loss a negative log-likelihood? Decided from the values and the derivatives of the loss alone.

A loss l(z, y) of outputs z and a label y is -log p(y | z), but for a term of y alone, exactly if

    Z(z) = sum over y of h(y) exp(-a l(z, y))           is the same for every z

for a base measure h, and the number a by which a mean over labels has divided the loss. Differentiating under the sum,
with p = h exp(-a l) / Z and any direction v,

    E[v' grad l] = 0                                    the score has zero mean
    a E[(v' grad l)^2] = E[v' (hessian of l) v]         the information identity

Then a^2 E[grad l grad l'] is the Fisher information with respect to the outputs, and the squared gradients an
optimizer averages have it as their expectation, if the labels are those of the model. Where no label set makes Z
constant, softmax and sigmoid cross-entropy with targets q other than a label are recognised by
``softmax(z) - a grad l = q`` for every z.

Source: FAdam, arXiv:2405.12807, Sections 3.2 (which losses) and 3.4.3 (terms that should not enter f).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor, nn

from fisheropt.fisher.examination import Kind, examine
from fisheropt.fisher.identities import ScalarLoss

__all__ = ["LikelihoodCheck", "LossFunction", "check_likelihood"]

LossFunction = Callable[[Tensor, Tensor], Tensor | Mapping[str, Tensor]]
"""``loss_fn(outputs, targets)``: the loss, or its terms by name."""

_CONSEQUENCES: dict[Kind, str] = {
    "discrete": (
        "covered: with labels of the model's own, the squared gradients that FAdam averages are a Fisher information; "
        "with those of the data they are the empirical one, which shrinks where the data is fitted"
    ),
    "soft-target": (
        "partly covered: the gradient vanishes where the model meets its targets, the Fisher information does not, so "
        "f falls below the Fisher information as training succeeds"
    ),
    "density": (
        "partly covered: f is a Fisher information only if the residuals are as the density says (for a squared error, "
        "of the variance its factor assumes); f has the units of the labels, and outliers enter it squared"
    ),
    "none": "not covered: f is an average of squared gradients, as in Adam; nothing makes it a Fisher information",
}


@dataclass(frozen=True)
class LikelihoodCheck:
    """What a loss is.

    Attributes:
        kind: ``"discrete"``: -log of a probability of labels; ``"soft-target"``: cross-entropy of such a probability
            against targets that are distributions; ``"density"``: -log of a density of real labels; ``"none"``.
        labels: the label set for which it holds, or comes closest.
        scale: a, the number by which a mean over labels has divided the loss; gradients are 1/a of the score.
        mass: Z of a single label, or None where the example has no single one: 1 if the loss is exactly -log p, another
            number if a constant or a term of the label alone is missing or added.
        spread: by how much log Z varies over outputs, in nats; 0 for a likelihood.
        score: the largest ``|E[v' grad l]|`` relative to the root mean square; 0 for a likelihood.
        information: the relative error of the information identity; 0 for a likelihood that is smooth, NaN if the loss
            cannot be differentiated twice.
        target: the distribution the loss is minimal at, for soft targets.
        auxiliary: names of the terms that no label enters: they belong outside the optimizer's f (Section 3.4.3).
    """

    kind: Kind
    labels: str
    scale: float
    mass: float | None
    spread: float
    score: float
    information: float
    target: tuple[float, ...] | None = None
    auxiliary: tuple[str, ...] = ()

    @property
    def covered(self) -> bool:
        """Whether the theory of FAdam is about this loss, without reservation."""
        return self.kind == "discrete" and not self.auxiliary

    @property
    def consequences(self) -> tuple[str, ...]:
        """What follows for FAdam, a sentence each."""
        said = [_CONSEQUENCES[self.kind]]
        if self.auxiliary:
            said.append(
                f"leave {', '.join(self.auxiliary)} out of the loss and add the gradient after f was updated, as "
                "weight decay does (Section 3.4.3): in the loss it enters f, which it has no part in"
            )
        if self.kind != "none" and self.scale != 1:
            said.append(
                "the loss is a mean over labels: with B of them, f is about 1/B of the Fisher information of one"
            )
        if self.kind == "density" and self.information > 0.05:
            said.append("the loss has kinks: its Hessian is not the Fisher information, though squared scores are")
        return tuple(said)

    def __str__(self) -> str:
        what = {
            "discrete": f"the negative log-likelihood of a label among {self.labels}",
            "soft-target": f"a cross-entropy against soft targets, over {self.labels}",
            "density": "the negative log of a density over real numbers",
            "none": f"no negative log-likelihood (closest: {self.labels})",
        }[self.kind]
        lines = [what, f"  log Z varies by {self.spread:.2g} nats over outputs"]
        if self.mass is not None:
            lines[-1] += f", Z = {self.mass:.4g}"
        second = "not differentiable twice" if isnan(self.information) else f"off by {self.information:.2g}"
        lines.append(f"  mean of the score {self.score:.2g} of its rms; information identity: {second}")
        if self.target is not None:
            shown = ", ".join(f"{q:.3g}" for q in self.target[:6]) + (", ..." if len(self.target) > 6 else "")
            lines.append(f"  the first label stands for the distribution ({shown})")
        lines += [f"  - {sentence}" for sentence in self.consequences]
        return "\n".join(lines)


def check_likelihood(
    loss_fn: LossFunction,
    outputs: Tensor,
    targets: Tensor,
    *,
    parameters: nn.Module | Mapping[str, Tensor] | None = None,
    n_classes: int | None = None,
    seed: int = 0,
) -> LikelihoodCheck:
    """Whether ``loss_fn`` is the negative log-likelihood of a distribution of labels, and which kind.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``: a loss, reduced or not, or a mapping of named terms whose sum it is. It
            must take outputs of any value: with ``nll_loss``, include the ``log_softmax``.
        outputs: an example of what the model puts out, two units are enough: (units, ...). Only its shape is used.
        targets: labels that go with it: (units, ...), integers for classes.
        parameters: the model, or its parameters by name; a loss that depends on them other than through the outputs has
            terms that no label enters, and they are named.
        n_classes: number of classes of integer targets. Default: the size of dimension 1 of ``outputs`` if the others
            are those of ``targets``, else of its last.
        seed: of the outputs at which the loss is looked at.

    Raises:
        ValueError: there is no unit, or the loss is not finite at unconstrained outputs.
    """
    if targets.numel() == 0 or outputs.numel() == 0:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} hold no unit; give one or two")
    generator = torch.Generator().manual_seed(seed)
    targets = targets.detach()[:2]
    targets = targets.double() if targets.is_floating_point() else targets
    z = torch.randn(outputs[:2].shape, dtype=torch.float64, generator=generator).to(outputs.device)
    free, loss = _terms_without_labels(loss_fn, z, targets)
    free += _parameters_reached(loss, z, targets, parameters)
    found = examine(loss, z, targets, n_classes, generator)
    auxiliary = free + (("a term of the outputs alone",) if found.has_term_of_outputs else ())
    return LikelihoodCheck(
        kind=found.kind,
        labels=found.labels,
        scale=found.scale,
        mass=found.mass,
        spread=found.identities.spread,
        score=found.identities.score,
        information=found.identities.information,
        target=found.target,
        auxiliary=auxiliary,
    )


def _total(value: Tensor | Mapping[str, Tensor]) -> Tensor:
    terms = value.values() if isinstance(value, Mapping) else [value]
    return torch.stack([term.sum().double() for term in terms]).sum()


def _terms_without_labels(loss_fn: LossFunction, z: Tensor, targets: Tensor) -> tuple[tuple[str, ...], ScalarLoss]:
    """The names of the terms that do not depend on the targets, and the rest of the loss as one function."""
    first = loss_fn(z, targets)
    if not isinstance(first, Mapping):
        return (), lambda z, y: _total(loss_fn(z, y))
    other = torch.where(targets == 0, 1, 0) if not targets.is_floating_point() else 1 - targets
    changed = loss_fn(z, other)
    assert isinstance(changed, Mapping)
    free = tuple(name for name in first if torch.equal(first[name], changed[name]))
    if len(free) == len(first):
        raise ValueError(f"no term of the loss depends on the targets: {', '.join(first)}")

    def rest(z: Tensor, y: Tensor) -> Tensor:
        terms = loss_fn(z, y)
        assert isinstance(terms, Mapping)
        return _total({name: term for name, term in terms.items() if name not in free})

    return free, rest


def _parameters_reached(
    loss: ScalarLoss, z: Tensor, targets: Tensor, parameters: nn.Module | Mapping[str, Tensor] | None
) -> tuple[str, ...]:
    """Says which parameters the loss depends on other than through the outputs."""
    if parameters is None:
        return ()
    named = dict(parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters)
    named = {name: p for name, p in named.items() if p.requires_grad}
    with torch.enable_grad():
        value = loss(z, targets)
        if not value.requires_grad or not named:
            return ()
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    reached = [name for name, g in zip(named, gradients, strict=True) if g is not None and bool((g != 0).any())]
    if not reached:
        return ()
    shown = ", ".join(reached[:3]) + (f" and {len(reached) - 3} more" if len(reached) > 3 else "")
    return (f"a term of the parameters ({shown})",)
