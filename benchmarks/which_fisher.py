#!/usr/bin/env python3
"""Does it matter that f is not the Fisher information? FAdam's rule with f exchanged for better estimates of it.

Everything but f is the same: lines 8 to 14 of Algorithm 1, the average of line 7, batches, seeds, schedule, and a grid
of learning rates of equal size, chosen by validation loss on the first seed. In the place of g^2 come

    batched      g^2, the square of the batch's mean gradient: FAdam
    empirical    mean over the batch of the squared gradients of its examples, over B
    mc           the same with labels drawn from the model: unbiased for the Fisher information, over B
    exact        labels summed under the model: the Fisher information of the batch's inputs, over B (digits only)
    shape        the best of these, scaled tensor by tensor to the sum of g^2: other entries, the same scale
    flat         g^2 averaged over each tensor: a control that knows nothing of single entries, the same scale

Division by B, the number of labels in a batch, gives all of them the scale of g^2 where gradients are mostly noise.
Where they are not, g^2 is larger, and its steps are shorter: what is due to this and what to single entries, ``shape``
and ``flat`` tell.

    python benchmarks/which_fisher.py digits    # some three minutes of one core
    python benchmarks/which_fisher.py text      # some ten
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fisheropt._math import debiased
from fisheropt.fadam import natural_descent
from fisheropt.fisher import fisher_diag
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.tasks import TASKS, Task
from fisheropt_lab.tasks.protocol import Asked

Squares = Callable[[nn.Module, tuple[Tensor, ...], int], dict[str, Tensor]]
BETAS, SEEDS, WARMUP = (0.9, 0.999), (0, 1, 2), 0.1
GRIDS = {"digits": (0.004, 0.008, 0.016, 0.032, 0.064), "text": (0.002, 0.004, 0.008, 0.016)}
STEPS = {"digits": 300, "text": 100}
ASKED = {"digits": Asked(), "text": Asked(seq_len=64)}


def batched(model: nn.Module, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    return {name: p.grad.square() for name, p in model.named_parameters() if p.grad is not None}


def flat(model: nn.Module, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    return {name: square.mean().expand_as(square) for name, square in batched(model, batch, seed).items()}


def estimated(estimator: str) -> Squares:
    """Per example, whose T labels have their gradients summed: over T^2, as the loss is a mean, and over B."""

    def squares(model: nn.Module, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
        labels, examples = batch[1].numel(), len(batch[1])
        generator = torch.Generator().manual_seed(seed)
        F = fisher_diag(model, [batch], estimator=estimator, generator=generator)
        return {name: x * examples / labels**2 for name, x in F.items()}

    return squares


def shaped(squares: Squares) -> Squares:
    """Other entries, with the sum of g^2 in each tensor."""

    def scaled(model: nn.Module, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
        sums = {name: square.sum() for name, square in batched(model, batch, seed).items()}
        return {name: x * (sums[name] / x.sum().clamp(min=1e-30)) for name, x in squares(model, batch, seed).items()}

    return scaled


CONTENDERS: dict[str, dict[str, Squares]] = {
    "digits": {
        "batched": batched,
        "empirical": estimated("empirical"),
        "mc": estimated("mc"),
        "exact": estimated("exact"),
        "shape": shaped(estimated("exact")),
        "flat": flat,
    },
    "text": {"batched": batched, "mc": estimated("mc"), "shape": shaped(estimated("mc")), "flat": flat},
}


def train(task: Task, squares: Squares, steps: int, lr: float, seed: int) -> nn.Module:
    """FAdam with its defaults, f from these squares."""
    model = task.model(seed)
    named = dict(model.named_parameters())
    f, m = ({name: fill(p) for name, p in named.items()} for fill in (torch.ones_like, torch.zeros_like))
    for t in range(steps):
        batch = task.batch(seed, t)
        model.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        found = squares(model, batch, t)
        b2hat, new = debiased(BETAS[1], torch.tensor(t + 1))
        with torch.no_grad():
            for name, p in named.items():
                f[name].mul_(b2hat).add_(found[name] * new)  # line 7
                natural_descent(
                    p,
                    p.grad,
                    f[name],
                    m[name],
                    lr=lr * lr_scale(t, steps, round(WARMUP * steps)),
                    beta1=BETAS[0],
                    eps=1e-8,
                    eps2=0.01,
                    clip=1.0,
                    rho=0.5,
                    weight_decay=1e-3,
                )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--only", nargs="*", help="these contenders; their results are added to those in --json")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, device = arguments.task, torch.device("cpu")
    task = TASKS[name].load(TASKS[name].setup(ASKED[name]).settings)
    results = {}
    if arguments.only and arguments.json and arguments.json.exists():
        results = json.loads(arguments.json.read_text())["results"]
    for contender, squares in CONTENDERS[name].items():
        if arguments.only and contender not in arguments.only:
            continue
        started = time.process_time()
        models = {lr: train(task, squares, STEPS[name], lr, SEEDS[0]) for lr in GRIDS[name]}
        search = {lr: task.evaluate(model, "validation", device) for lr, model in models.items()}
        best = min(search, key=lambda lr: search[lr] if search[lr] == search[lr] else float("inf"))
        chosen = [models[best], *(train(task, squares, STEPS[name], best, seed) for seed in SEEDS[1:])]
        losses = {split: [task.evaluate(model, split, device) for model in chosen] for split in ("validation", "test")}
        results[contender] = {"search": search, "lr": best, **losses, "cpu_seconds": time.process_time() - started}
        shown = ", ".join(
            f"{split} {statistics.mean(x):.4f} ± {statistics.stdev(x):.4f}" for split, x in losses.items()
        )
        grid = " ".join(f"{lr:g}:{loss:.4f}" for lr, loss in search.items())
        print(f"{contender:10} lr {best:g}: {shown}   [{grid}]  {results[contender]['cpu_seconds']:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"task": name, "steps": STEPS[name], "results": results}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
