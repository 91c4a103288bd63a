"""diagnose: how far an optimizer's f is from the Fisher information of its model, and what it does in a step.

f averages squares of the gradient of a mean loss. With B examples in a batch and T labels in an example, f is in the
units of 1/(B T^2) of a Fisher information per example, in which the gradients of the T labels are summed; so what is
compared with F is B T^2 f (SPEC section 5; T is 1 where an example has one label).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt.fisher.batches import Batch, batches
from fisheropt.fisher.compare import Agreement, FisherComparison, compare_fisher
from fisheropt.fisher.diagonal import FisherDiagonal
from fisheropt.fisher.estimate import fisher_diag
from fisheropt.fisher.likelihood import LikelihoodCheck, check_likelihood
from fisheropt.fisher.models import call, check_model, undisturbed
from fisheropt.fisher.noise import NoiseSplit, noise_split
from fisheropt.fisher.questions import asked
from fisheropt.staleness import Staleness, held_by, staleness
from fisheropt.step_statistics import StepStatistics, step_statistics

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Diagonals are per example, labels summed.

    Attributes:
        optimizer: the name of its class.
        batch_size: B, examples.
        labels: T, per example that count: a mean, if some are masked.
        held: name -> B T^2 f.
        fisher: the Fisher information of the model.
        empirical: with the labels of the data.
        held_and_fisher: B T^2 f against ``fisher``.
        held_and_empirical: B T^2 f against ``empirical``.
        empirical_and_fisher: and these against each other.
        staleness: f against fresh squares of the same batch size.
        noise: of the gradient, per example.
        likelihood: what the loss is.
        steps: name -> what one more step does to the tensor.
    """

    optimizer: str
    batch_size: int
    labels: float
    held: Mapping[str, Tensor]
    fisher: FisherDiagonal
    empirical: FisherDiagonal
    held_and_fisher: FisherComparison
    held_and_empirical: FisherComparison
    empirical_and_fisher: FisherComparison
    staleness: Staleness
    noise: NoiseSplit
    likelihood: LikelihoodCheck
    steps: Mapping[str, StepStatistics]

    @property
    def findings(self) -> tuple[tuple[str, str], ...]:
        """A question and its answer in numbers each."""
        clips = [s.clip for s in self.steps.values() if s.clip is not None]
        epsilon = _weighted(self.steps, "epsilon_share")
        decay = _weighted(self.steps, "decay_share")
        old = self.staleness
        return (
            (
                "Is the loss one the theory covers?",
                f"{self.likelihood.consequences[0].partition(':')[0]}: {str(self.likelihood).partition(chr(10))[0]}",
            ),
            ("How far is f from the Fisher information?", _agrees(self.held_and_fisher.total)),
            ("And from the empirical one?", _agrees(self.held_and_empirical.total)),
            ("How far is the empirical one from the Fisher information?", _agrees(self.empirical_and_fisher.total)),
            (
                "Is f out of date?",
                f"a square has half its weight after {old.half_life:.0f} steps, {old.steps} were taken; against "
                f"{old.batches} fresh batches f has trace ratio {old.held_and_fresh.total.trace_ratio:.2g} and cosine "
                f"{old.held_and_fresh.total.cosine:.2f}, two halves of these {old.fresh_halves.total.cosine:.2f}",
            ),
            (
                "How much of f is noise between batches?",
                f"{self.noise.noise_share(self.batch_size):.0%} at B = {self.batch_size}; signal and noise are equal "
                f"at B = {self.noise.total.critical_batch:.3g}",
            ),
            (
                "Is the epsilon at work?",
                "not known for this optimizer" if epsilon is None else f"in {epsilon:.1%} of the entries",
            ),
            (
                "Is the clip at work?",
                f"in {sum(clip > 1 for clip in clips)} of {len(clips)} tensors; the largest rms is {max(clips):.2g} c"
                if clips
                else "there is none",
            ),
            (
                "How much of a step is weight decay?",
                "not known for this optimizer" if decay is None else f"{decay:.1%} of its rms",
            ),
        )

    def __str__(self) -> str:
        rows = [*self.held, "all"]
        width = max(map(len, rows))
        three = f"{'trace':>7} {'cosine':>8} {'ranks':>8}"
        lines = [
            f"{self.optimizer}, B = {self.batch_size}, T = {self.labels:g}, F: {self.fisher.estimator}",
            f"{'':{width}}  {'':>9}  {'B f against Fisher':^25}  {'B f against empirical':^25}",
            f"{'':{width}}  {'entries':>9}  {three}  {three}  {'epsilon':>7}  {'clip':>5}  {'decay':>6}",
        ]
        for name in rows:
            whole = name == "all"
            two = [c.total if whole else c.layers[name] for c in (self.held_and_fisher, self.held_and_empirical)]
            cells = [f"{a.trace_ratio:>7.3g} {a.cosine:>8.3f} {a.rank_correlation:>8.3f}" for a in two]
            if (step := self.steps.get(name)) is not None:
                cells += [_cell(step.epsilon_share, 7, ".1%"), _cell(step.clip, 5, ".2f")]
                cells += [_cell(step.decay_share, 6, ".1%")]
            lines.append("  ".join([f"{name:{width}}  {two[0].entries:>9,}", *cells]))
        lines += [f"{question} {answer}." for question, answer in self.findings]
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    optimizer: Optimizer,
    data: Iterable[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
    estimator: Literal["exact", "mc"] = "exact",
    n_samples: int = 1,
    top: float = 0.01,
) -> Diagnosis:
    """Look at an optimizer in the middle of training. Model, gradients and optimizer are left as they were.

    Args:
        model: ``model(inputs)`` returns outputs (N, *positions, K), or something with such ``logits``; without layers
            that take statistics over the batch, or in eval mode, where dropout is silent too.
        optimizer: of its parameters, with an average of squared gradients, and at least one step old.
        data: fresh batches ``(inputs, targets)`` of the size it is trained with; sixteen say more than two. Targets of
            -100 do not count.
        loss_fn: ``loss_fn(outputs, targets)``, the loss of the training: a mean over examples and their labels.
        likelihood: which Fisher information to compare with.
        estimator: ``"exact"``, at as many passes as an example has labels times classes, or ``"mc"``.
        n_samples: for ``"mc"``.
        top: as in `compare_fisher`.

    Raises:
        ValueError: the optimizer holds nothing, batches differ in size or are fewer than two, or as `fisher_diag`.

    Example:
        >>> import torch, fisheropt
        >>> from torch.nn.functional import cross_entropy
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = fisheropt.FAdam(model.parameters())
        >>> data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
        >>> for x, y in data:
        ...     optimizer.zero_grad()
        ...     cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        >>> fisheropt.diagnose(model, optimizer, data, cross_entropy).likelihood.kind
        'discrete'
    """
    check_model(model)
    kept = list(batches(data, None))
    sizes = {batch.size for batch in kept}
    if len(kept) < 2 or len(sizes) > 1:
        raise ValueError(f"data must hold at least two batches of one size, got {len(kept)} of sizes {sorted(sizes)}")
    pairs = [(batch.inputs, batch.targets) for batch in kept]
    f = held_by(optimizer, model)
    B = kept[0].size
    question = asked(likelihood, "example", None, -100, estimator=estimator, estimators=("exact", "mc"))
    with undisturbed(model), torch.no_grad():
        outputs = call(model, kept[0].inputs)
        counts = [question.labels(call(model, batch.inputs), batch)[0] for batch in kept]
    T = sum(int(count.sum()) for count in counts) / (B * len(kept))
    held = {name: x.double() * (B * T**2) for name, x in f.items()}
    fisher = fisher_diag(model, pairs, likelihood=likelihood, estimator=estimator, n_samples=n_samples)
    empirical = fisher_diag(model, pairs, likelihood=likelihood, estimator="empirical")
    of_held = [{name: F[name] for name in held} for F in (fisher, empirical)]
    return Diagnosis(
        optimizer=type(optimizer).__name__,
        batch_size=B,
        labels=T,
        held=held,
        fisher=fisher,
        empirical=empirical,
        held_and_fisher=compare_fisher(held, of_held[0], top=top),
        held_and_empirical=compare_fisher(held, of_held[1], top=top),
        empirical_and_fisher=compare_fisher(of_held[1], of_held[0], top=top),
        staleness=staleness(optimizer, model, pairs, loss_fn, top=top),
        noise=noise_split(model, pairs, loss_fn),
        likelihood=check_likelihood(loss_fn, *_few_labels(outputs, kept[0].targets), parameters=model),
        steps=_one_step(model, optimizer, kept[0], loss_fn),
    )


def _few_labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Two examples of at most four positions: as many as it takes to see what the loss does."""
    if outputs.dim() > 2 and outputs.shape[1] == targets.shape[1]:
        outputs, targets = outputs[:, :4], targets[:, :4]
    outputs, targets = outputs[:2], targets[:2]
    return outputs, targets if targets.is_floating_point() else targets.clamp(min=0)  # what is masked says nothing


def _one_step(
    model: nn.Module, optimizer: Optimizer, batch: Batch, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, StepStatistics]:
    """What a step would do, which is then undone."""
    names = {p: name for name, p in model.named_parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before, gradients = {p: p.detach().clone() for p in params}, {p: p.grad for p in params}
    state = copy.deepcopy(optimizer.state_dict())
    try:
        for p in params:
            p.grad = None
        with undisturbed(model):
            loss_fn(call(model, batch.inputs), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = {
            names.get(p, "?"): step_statistics(optimizer, p, group, before[p])
            for group in optimizer.param_groups
            for p in group["params"]
        }
    finally:
        with torch.no_grad():
            for p in params:
                p.copy_(before[p])
                p.grad = gradients[p]
        optimizer.load_state_dict(state)
    return {name: found[name] for name in names.values() if found.get(name) is not None}  # type: ignore[misc]


def _agrees(a: Agreement) -> str:
    return (
        f"trace ratio {a.trace_ratio:.3g}, cosine {a.cosine:.2f}, rank correlation {a.rank_correlation:.2f}, "
        f"of the largest entries {a.top_overlap:.0%} are the same"
    )


def _weighted(steps: Mapping[str, StepStatistics], name: str) -> float | None:
    """The mean over entries of a share."""
    known = [(s.entries, getattr(s, name)) for s in steps.values() if getattr(s, name) is not None]
    return sum(n * x for n, x in known) / sum(n for n, _ in known) if known else None


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
