"""Pruning without retraining: by theta^2 F/2, with F from every estimator, by magnitude and at random."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fisheropt.fisher import fisher_saliency, prune_by_saliency
from fisheropt_lab.report.style import OKABE_ITO
from fisheropt_lab.show.demonstration import (
    Demonstration,
    Run,
    Table,
    Tick,
    difference_text,
    mean_text,
    tidy_axes,
)
from fisheropt_lab.show.digit_nets import ESTIMATORS, accuracy, classifier, digits, fishers, train, twin

STEPS = 400
AMOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MAGNITUDE, CHANCE = "magnitude", "random"
LABELS = {MAGNITUDE: "magnitude", **ESTIMATORS, CHANCE: "at random"}


def run(seed: int, tick: Tick) -> Run:
    model = classifier(seed, classes=10)
    optimizer = train(model, digits("train"), STEPS, seed=1000 + seed)
    generator = torch.Generator().manual_seed(3000 + seed)
    params = dict(model.named_parameters())
    saliencies: dict[str, dict[str, Tensor]] = {
        MAGNITUDE: {name: p.detach().abs() for name, p in params.items()},
        CHANCE: {name: torch.rand(p.shape, generator=generator) for name, p in params.items()},
    }
    for name, fisher in fishers(model, digits("train"), optimizer).items():
        saliencies[name] = fisher_saliency(model, fisher)
    tick("the model")
    found: dict[str, dict[str, float]] = {}
    for name in LABELS:
        found[name] = {}
        for amount in AMOUNTS:
            pruned = twin(model)
            prune_by_saliency(pruned, saliencies[name], amount)
            found[name][f"{amount:g}"] = accuracy(pruned, digits("test"))
        tick(LABELS[name])
    return {"seed": seed, "dense": accuracy(model, digits("test")), "methods": found}


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    amounts = [f"{amount:g}" for amount in AMOUNTS]

    def tests(method: str, amount: str) -> list[float]:
        return [run["methods"][method][amount] for run in runs]

    rows = [(label, *(mean_text(tests(name, a)) for a in amounts)) for name, label in LABELS.items()]
    differences = [
        (label, *(difference_text(tests(name, a), tests(MAGNITUDE, a)) for a in amounts))
        for name, label in LABELS.items()
        if name != MAGNITUDE
    ]
    shares = tuple(f"{amount:.0%}" for amount in AMOUNTS)
    dense = mean_text([run["dense"] for run in runs])
    return (
        Table(
            f"Test accuracy in per cent, by the share of weights that is 0 (none: {dense})",
            ("by", *shares),
            tuple(rows),
        ),
        Table("The same against magnitude (95 %)", ("by", *shares), tuple(differences)),
    )


def draw(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for colour, marker, name in zip(OKABE_ITO, "osD^v*X", LABELS, strict=False):
        means = [fmean(run["methods"][name][f"{a:g}"] for run in runs) for a in AMOUNTS]
        axes.plot([100 * a for a in AMOUNTS], means, color=colour, marker=marker, label=LABELS[name])
    axes.axhline(fmean(run["dense"] for run in runs), color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="weights that are 0, %", ylabel="test accuracy, %")
    axes.set_title(f"Pruned at once, without retraining (mean over {len(runs)} seeds; dashed: not pruned)")
    tidy_axes(axes)
    figure.legend(loc="outside upper center", ncols=7, frameon=False, fontsize=9)
    return figure


PRUNE_DEMONSTRATION = Demonstration(
    name="prune",
    about="a network for the digits pruned by Fisher saliency, by magnitude and at random",
    protocol=(
        "Data: the 1,797 digits of scikit-learn, 60 % train, 20 % validation, 20 % test; ten classes.",
        f"Model: two hidden layers of 64; FAdam, lr 0.005, batches of 32, {STEPS} steps. Weights of all layers are "
        "pruned together, biases never; F is of the training part. Nothing is tuned, nothing is trained afterwards.",
    ),
    seeds=5,
    parts=1 + len(LABELS),
    run=run,
    tables=tables,
    draw=draw,
)
