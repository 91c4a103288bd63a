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
from torch.optim import Optimizer

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


def compile_ahead(task: Task, spec: Spec, key: str) -> float:
    """Let an optimizer step once on a throw-away model, so that no trial pays for compilation; seconds taken."""
    device = torch.device(spec.device)
    model = task.model(spec.tuning_seed).to(device)
    optimizer = _optimizer(spec, key, model)
    loss = task.loss(model, tuple(part.to(device) for part in task.batch(spec.tuning_seed, 0)))
    loss.backward()  # type: ignore[no-untyped-call]
    started = now(device)
    optimizer.step()
    return now(device) - started


def _optimizer(spec: Spec, key: str, model: nn.Module) -> Optimizer:
    entry = spec.entries[key]
    return contender(entry.optimizer).build(model, NEARLY_ZERO, spec.backend, dict(entry.options))


def measure_step_times(task: Task, spec: Spec) -> dict[str, StepTime]:
    """Typical times per entry, all on one model; who watches its model gets one alone, so that the others do not pay
    for its hooks."""
    device = torch.device(spec.device)
    kinds = {key: contender(entry.optimizer) for key, entry in spec.entries.items()}
    shared = task.model(spec.tuning_seed).to(device)
    models = {key: task.model(spec.tuning_seed).to(device) if kinds[key].watches else shared for key in kinds}
    optimizers = {key: _optimizer(spec, key, models[key]) for key in kinds}
    keys = list(optimizers)
    optimizer_ms: dict[str, list[float]] = {key: [] for key in keys}
    training_ms: dict[str, list[float]] = {key: [] for key in keys}
    i, begun = 0, now(device)
    while i < WARM_UP_ROUNDS + TIMED_ROUNDS or now(device) - begun < TIMED_SECONDS:
        turn = i % len(keys)
        for key in keys[turn:] + keys[:turn]:
            model = models[key]
            started = now(device)
            loss = task.loss(model, tuple(part.to(device) for part in task.batch(spec.tuning_seed, i)))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
            before = now(device)
            optimizers[key].step()
            after = now(device)
            model.zero_grad()
            if i >= WARM_UP_ROUNDS:
                optimizer_ms[key].append((after - before) * 1e3)
                training_ms[key].append((after - started) * 1e3)
        i += 1
    return {key: _summary(optimizer_ms[key], training_ms[key], kinds[key].period) for key in keys}


def _summary(optimizer_ms: list[float], training_ms: list[float], period: int) -> StepTime:
    lower, _, upper = quantiles(optimizer_ms, n=4)
    return StepTime(
        typical(optimizer_ms, period), (lower, upper), typical(training_ms, period), rounds=len(optimizer_ms)
    )


def typical(times: list[float], period: int) -> float:
    """The median; where every so many steps one is more expensive, the mean over a period of the medians of its steps,
    because a plain median would hide those."""
    return fmean(median(times[phase::period]) for phase in range(min(period, len(times))))
