"""Train with an optimizer and diagnose it on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fisheropt
from fisheropt_lab.diagnose.looks import Look, look_of
from fisheropt_lab.diagnose.request import EXACT_UP_TO, Plan
from fisheropt_lab.optimizers import contender
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.tasks import Task

WARMUP_SHARE = 0.1  # of the steps
MONITORED = 100  # steps that the monitor looks at


@dataclass(frozen=True)
class Run:
    """A plan, and what was seen."""

    plan: Plan
    protocol: tuple[str, ...]
    looks: tuple[Look, ...]
    monitored: tuple[dict[str, Any], ...]  # the lines of fisheropt.Monitor

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "plan": asdict(self.plan),
            "protocol": list(self.protocol),
            "looks": [look.to_json() for look in self.looks],
        }


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy per label, the loss of the tasks that are diagnosed."""
    return functional.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten())


def run_diagnosis(task: Task, plan: Plan, log: Path, on_step: Callable[[int, str], None]) -> Run:
    """Train on the CPU with the lab's schedule, without clipping the gradient, which would change the scale of f.

    Args:
        task: the plan's.
        plan: what to do.
        log: where the lines of the monitor go, while it trains.
        on_step: told how many steps are done, and what is going on.
    """
    model = task.model(plan.seed)
    optimizer = contender(plan.optimizer).build(model, plan.lr, "auto")
    monitor = fisheropt.Monitor(optimizer, every=max(1, plan.steps // MONITORED), path=log, model=model)
    losses: list[float] = []
    looks: list[Look] = []
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * lr_scale(step, plan.steps, max(1, round(WARMUP_SHARE * plan.steps)))
        optimizer.zero_grad()
        loss = task.loss(model, task.batch(plan.seed, step))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        on_step(step + 1, f"training, loss {losses[-1]:.3f}")
        if step + 1 in plan.looks:
            on_step(step + 1, f"looking at f after {step + 1} steps")
            fresh = [task.batch(plan.seed, plan.steps + i) for i in range(plan.batches)]
            with torch.no_grad():
                columns = fresh[0][1][0].numel() * model(fresh[0][0][:1]).shape[-1]
            estimator = "exact" if columns <= EXACT_UP_TO else "mc"
            monitor.close()  # the step of a diagnosis is none of the training
            diagnosis = fisheropt.diagnose(model, optimizer, fresh, loss_fn, estimator=estimator)
            looks.append(look_of(diagnosis, step + 1, fmean(losses[-20:])))
            monitor = fisheropt.Monitor(
                optimizer, every=max(1, plan.steps // MONITORED), path=log, model=model, step=step + 1
            )
    monitor.close()
    monitored = tuple(json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return Run(plan, _protocol(task, plan, looks[-1]), tuple(looks), monitored)


def _protocol(task: Task, plan: Plan, last: Look) -> tuple[str, ...]:
    """How the numbers came about."""
    which = {
        "exact": "labels summed under the model",
        "mc": "one label drawn from the model for each, so that its own noise lowers cosines",
    }[last.estimator]
    return (
        *task.protocol(plan.steps),
        f"{contender(plan.optimizer).label}, learning rate {plan.lr:g}, warmed up over a tenth of the {plan.steps} "
        f"steps and then a cosine to zero; the gradient is not clipped; seed {plan.seed}.",
        f"Each look takes {plan.batches} fresh training batches. F: {which}; empirical: the data's labels; both per "
        f"example, labels summed. f is of a mean loss over B = {last.batch_size} examples of T = {last.labels:g} "
        "labels, so B T² f is what is compared.",
        "Cosines compare shapes and are those of the largest entries; rank correlations are of all entries; the trace "
        "ratio is that of the sums.",
        "Each look does one more step and takes it back: epsilon, clip and decay are those of that step.",
    )
