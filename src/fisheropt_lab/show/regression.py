"""Regression by classification on real data: squared error against two-hot and HL-Gauss, with AdamW and FAdam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt import FAdam
from fisheropt.losses import HLGauss, TwoHot
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

STEPS, EVERY, WARMUP, BATCH_SIZE = 300, 20, 10, 32
LRS = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
BINS, RANGE = 51, 4.0  # the bins reach RANGE standard deviations of the training targets to either side
RIDGES = tuple(10.0**i for i in range(-4, 4))


@dataclass(frozen=True)
class Loss:
    """A way to learn a number: how many outputs, the loss of a batch, and the prediction; targets are standardised."""

    label: str
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


TWO_HOT, HL_GAUSS = TwoHot(-RANGE, RANGE, BINS), HLGauss(-RANGE, RANGE, BINS)
LOSSES = {
    "mse": Loss("squared error", 1, lambda out, y: (out.squeeze(-1) - y).square().mean(), lambda out: out.squeeze(-1)),
    "two-hot": Loss("two-hot", BINS, lambda out, y: TWO_HOT.nll(out, y).mean(), TWO_HOT.decode),
    "hl-gauss": Loss("HL-Gauss", BINS, lambda out, y: HL_GAUSS.nll(out, y).mean(), HL_GAUSS.decode),
}
OPTIMIZERS: dict[str, tuple[str, Callable[..., Optimizer]]] = {
    "adamw": ("AdamW", lambda params, lr: torch.optim.AdamW(params, lr=lr, fused=True)),
    "fadam": ("FAdam", lambda params, lr: FAdam(params, lr=lr)),
}
METHODS = {f"{loss}, {name}": (loss, name) for loss in LOSSES for name in OPTIMIZERS}
BASELINE = "mse, adamw"


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Ten measurements of each of 442 patients, (442, 10), and the progression of their diabetes, (442,)."""
    from sklearn.datasets import load_diabetes  # takes a second to import

    bunch = load_diabetes()
    return torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).float()


def split(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """train, validation and test of one seed; inputs and targets standardised by the training part."""
    x, y = patients()
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=[0, seed])).permutation(len(x)))
    parts = dict(zip(("train", "validation", "test"), order.split([266, 88, 88]), strict=True))
    mean, std = x[parts["train"]].mean(0), x[parts["train"]].std(0)
    low, spread = y[parts["train"]].mean(), y[parts["train"]].std()
    return {name: ((x[rows] - mean) / std, (y[rows] - low) / spread) for name, rows in parts.items()} | {
        "unit": (spread, low)
    }


def run(seed: int, tick: Tick) -> Run:
    data = split(seed)
    unit = data["unit"][0].item()
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, (loss, optimizer) in METHODS.items():
        found[method] = {f"{lr:g}": _train(LOSSES[loss], OPTIMIZERS[optimizer][1], lr, data, seed, unit) for lr in LRS}
        tick(f"{LOSSES[loss].label}, {OPTIMIZERS[optimizer][0]}")
    ridge = {f"{a:g}": _ridge(a, data, unit) for a in RIDGES}
    return {"seed": seed, "unit": unit, "spread": unit * data["test"][1].std().item(), "ridge": ridge, "methods": found}


def _train(
    loss: Loss,
    build: Callable[..., Optimizer],
    lr: float,
    data: dict[str, tuple[Tensor, Tensor]],
    seed: int,
    unit: float,
) -> dict[str, list[float]]:
    """Root mean squared errors along the way, in the unit of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, loss.outputs))
    optimizer = build(model.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    x, y = data["train"]
    errors: dict[str, list[float]] = {"validation": [], "test": []}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP)
        chosen = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
        optimizer.zero_grad()
        loss.loss(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                for part, values in errors.items():
                    inputs, targets = data[part]
                    error = unit * (loss.decode(model(inputs)) - targets).square().mean().sqrt().item()
                    values.append(round(error, 4))  # a run folder of a size to be looked at
    return errors


def _ridge(alpha: float, data: dict[str, tuple[Tensor, Tensor]], unit: float) -> dict[str, float]:
    """Linear regression with an L2 penalty, for perspective."""
    x, y = (t.double() for t in data["train"])
    weights = torch.linalg.solve(x.T @ x + alpha * len(x) * torch.eye(x.shape[1]).double(), x.T @ y)
    return {
        part: unit * (data[part][0].double() @ weights - data[part][1].double()).square().mean().sqrt().item()
        for part in ("validation", "test")
    }


def _over_seeds(runs: Sequence[Run], method: str, lr: float) -> list[float]:
    """The mean validation error at each evaluation."""
    return [
        fmean(errors) for errors in zip(*(r["methods"][method][f"{lr:g}"]["validation"] for r in runs), strict=True)
    ]


def best(runs: Sequence[Run], method: str) -> tuple[str, int]:
    """The learning rate and the number of the evaluation with the least mean validation error over the seeds."""
    found = {(f"{lr:g}", i): error for lr in LRS for i, error in enumerate(_over_seeds(runs, method, lr))}
    return min(found, key=lambda at: found[at])


def tests(runs: Sequence[Run], method: str) -> list[float]:
    lr, i = best(runs, method)
    return [run["methods"][method][lr]["test"][i] for run in runs]


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    baseline = tests(runs, BASELINE)
    rows: list[tuple[str, ...]] = []
    for method, (loss, optimizer) in METHODS.items():
        (lr, i), found = best(runs, method), tests(runs, method)
        against = "" if method == BASELINE else difference_text(found, baseline, 2)
        at = (f"{float(lr):g}", str(EVERY * (i + 1)))
        rows.append((LOSSES[loss].label, OPTIMIZERS[optimizer][0], *at, mean_text(found, 2), against))
    alpha = min(RIDGES, key=lambda a: fmean(run["ridge"][f"{a:g}"]["validation"] for run in runs))
    ridge = [run["ridge"][f"{alpha:g}"]["test"] for run in runs]
    rows.append(
        ("ridge regression", "", f"penalty {alpha:g}", "", mean_text(ridge, 2), difference_text(ridge, baseline, 2))
    )
    spread = mean_text([run["spread"] for run in runs], 1)
    columns = ("loss", "optimizer", "lr", "steps", "RMSE", "against squared error with AdamW (95 %)")
    between = tuple(
        (one.label, difference_text(tests(runs, f"{loss}, fadam"), tests(runs, f"{loss}, adamw"), 2))
        for loss, one in LOSSES.items()
    )
    return (
        Table(f"Test root mean squared error (standard deviation of the targets: {spread})", columns, tuple(rows)),
        Table("FAdam against AdamW under the same loss", ("loss", "RMSE, FAdam's less AdamW's (95 %)"), between),
    )


def draw(runs: Sequence[Run]) -> Figure:
    """Left: the best validation error at each learning rate. Right: test errors of the chosen ones, seed by seed."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    search, chosen = figure.subplots(1, 2)
    for colour, marker, (method, (loss, name)) in zip(OKABE_ITO, "osD^v*", METHODS.items(), strict=False):
        lowest = [min(_over_seeds(runs, method, lr)) for lr in LRS]
        label = f"{LOSSES[loss].label}, {OPTIMIZERS[name][0]}"
        search.plot(LRS, lowest, color=colour, marker=marker, label=label)
    search.set(xscale="log", xlabel="learning rate", ylabel="mean validation RMSE at its best step")
    search.set_xticks(LRS, [f"{lr:g}" for lr in LRS])
    search.minorticks_off()
    search.set_title("The learning rates, each at its best number of steps")
    search.legend(frameon=False, fontsize=9)
    found = [tests(runs, method) for method in METHODS]
    chosen.plot(range(len(found)), found, color="#999999", linewidth=0.7, alpha=0.6)  # a line per seed
    for i, (colour, values) in enumerate(zip(OKABE_ITO, found, strict=False)):
        chosen.plot([i] * len(values), values, "o", color=colour, alpha=0.5, markersize=5)
        chosen.plot([i - 0.25, i + 0.25], [fmean(values)] * 2, color=colour, linewidth=3)
    names = [f"{LOSSES[loss].label}\n{OPTIMIZERS[name][0]}" for loss, name in METHODS.values()]
    chosen.set_xticks(
        range(len(names)), [name.replace("squared error", "squared\nerror") for name in names], fontsize=9
    )
    chosen.set(ylabel="test RMSE", title=f"The chosen ones on {len(runs)} seeds (bars: mean)")
    for axes in (search, chosen):
        tidy_axes(axes)
    return figure


REGRESSION_DEMONSTRATION = Demonstration(
    name="regression",
    about="the progression of diabetes as a number: squared error, two-hot and HL-Gauss, with AdamW and FAdam",
    protocol=(
        "Data: the 442 patients of scikit-learn's diabetes data, ten measurements, progression of the disease after a "
        "year; 266 train, 88 validation, 88 test, drawn anew for every seed; standardised by the training part.",
        f"Model: two hidden layers of 64; {BINS} bins over {RANGE:g} standard deviations to either side. Batches of "
        f"{BATCH_SIZE}, {WARMUP} steps of warm-up, then a constant learning rate.",
        f"Each of the six gets the same {len(LRS)} learning rates and {STEPS // EVERY} numbers of steps; the pair "
        "with the least mean validation error over the seeds is reported on the test part. Ridge regression, tuned in "
        "the same way, is there for perspective.",
    ),
    seeds=10,
    parts=len(METHODS),
    run=run,
    tables=tables,
    draw=draw,
)
