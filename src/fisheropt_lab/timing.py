"""Step times, measured with the optimizers taking turns.

Times taken during training compare an optimizer at noon with another at one o'clock. Here all of them step the same
model in the same minute, in an order that rotates, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import nn

from fisheropt_lab.clock import now
from fisheropt_lab.optimizers import contender
from fisheropt_lab.spec import Spec
from fisheropt_lab.tasks import Task

WARM_UP_ROUNDS = 3  # state is allocated, kernels are compiled
TIMED_ROUNDS = 30  # at least, and as many more as fit into
TIMED_SECONDS = 2.0  # because medians of a few short steps say little on a busy machine
NEARLY_ZERO = 1e-9  # learning rate: the weights stay where they are, the arithmetic is the same


@dataclass(frozen=True)
class StepTime:
    """Milliseconds: typical ones, and the middle half of the optimizer's step."""

    optimizer_ms: float
    optimizer_ms_quartiles: tuple[float, float]
    training_ms: float  # batch, forward, backward, clipping and the optimizer's step
    rounds: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StepTime:
        """The inverse of dataclasses.asdict after a trip through JSON."""
        return cls(**(value | {"optimizer_ms_quartiles": tuple(value["optimizer_ms_quartiles"])}))


def compile_ahead(task: Task, spec: Spec, name: str) -> float:
    """Let an optimizer step once on a throw-away model, so that no trial pays for compilation; seconds taken."""
    device = torch.device(spec.device)
    model = task.model(spec.seeds[0]).to(device)
    optimizer = contender(name).build(model, NEARLY_ZERO, spec.backend)
    loss = task.loss(model, tuple(part.to(device) for part in task.batch(spec.seeds[0], 0)))
    loss.backward()  # type: ignore[no-untyped-call]
    started = now(device)
    optimizer.step()
    return now(device) - started


def measure_step_times(task: Task, spec: Spec) -> dict[str, StepTime]:
    """Typical times per optimizer name, all on one model; who watches its model gets one alone, so that the others do
    not pay for its hooks."""
    device = torch.device(spec.device)
    shared = task.model(spec.seeds[0]).to(device)
    models = {
        name: task.model(spec.seeds[0]).to(device) if contender(name).watches else shared for name in spec.optimizers
    }
    optimizers = {name: contender(name).build(models[name], NEARLY_ZERO, spec.backend) for name in spec.optimizers}
    names = list(optimizers)
    optimizer_ms: dict[str, list[float]] = {name: [] for name in names}
    training_ms: dict[str, list[float]] = {name: [] for name in names}
    i, begun = 0, now(device)
    while i < WARM_UP_ROUNDS + TIMED_ROUNDS or now(device) - begun < TIMED_SECONDS:
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            model = models[name]
            started = now(device)
            loss = task.loss(model, tuple(part.to(device) for part in task.batch(spec.seeds[0], i)))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
            before = now(device)
            optimizers[name].step()
            after = now(device)
            model.zero_grad()
            if i >= WARM_UP_ROUNDS:
                optimizer_ms[name].append((after - before) * 1e3)
                training_ms[name].append((after - started) * 1e3)
        i += 1
    return {name: _summary(optimizer_ms[name], training_ms[name], contender(name).period) for name in names}


def _summary(optimizer_ms: list[float], training_ms: list[float], period: int) -> StepTime:
    lower, _, upper = quantiles(optimizer_ms, n=4)
    return StepTime(
        typical(optimizer_ms, period), (lower, upper), typical(training_ms, period), rounds=len(optimizer_ms)
    )


def typical(times: list[float], period: int) -> float:
    """The median; where every so many steps one is more expensive, the mean over a period of the medians of its steps,
    because a plain median would hide those."""
    return fmean(median(times[phase::period]) for phase in range(min(period, len(times))))
