"""From what the user typed to what will be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import usable_cores
from fisheropt_lab.options import known, positive
from fisheropt_lab.tasks import TASKS, Asked, Task

OPTIMIZERS = ("fadam", "fadafactor", "adam", "adamw")
"""Those that average squares of gradients and whose f can be read."""

TASKS_WITH_FISHER = ("text", "digits")
"""Those whose labels are classes, as the Fisher information takes them here."""

STEPS = {"text": 300, "digits": 600}
EXACT_UP_TO = 64  # columns per example, labels times classes, for which the exact Fisher information is affordable


@dataclass(frozen=True)
class DiagnoseRequest:
    """The options of `fisheropt diagnose`, as typed; None is "not given"."""

    task: str
    optimizer: str = "fadam"
    steps: int | None = None
    lr: float | None = None
    batches: int | None = None
    looks: int | None = None
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Plan:
    """A request with everything filled in."""

    task: str
    optimizer: str
    steps: int
    lr: float
    batches: int
    looks: tuple[int, ...]  # after which steps, ascending, the last one at the end
    seed: int
    threads: int


def plan_of(request: DiagnoseRequest, default_lr: float) -> Plan:
    """Check the request."""
    known("task", request.task, TASKS_WITH_FISHER)
    known("optimizer", request.optimizer, OPTIMIZERS)
    steps = positive("--steps", request.steps, STEPS[request.task])
    looks = positive("--looks", request.looks, 5)
    batches = positive("--batches", request.batches, 16)
    if batches < 2:
        raise LabError("--batches must be at least 2: one batch does not tell signal from noise")
    if request.lr is not None and not request.lr > 0:
        raise LabError(f"--lr must be positive, not {request.lr:g}")
    at = {max(1, round(steps * 2.0 ** (i + 1 - looks))) for i in range(looks)}  # each twice as late as the one before
    return Plan(
        task=request.task,
        optimizer=request.optimizer,
        steps=steps,
        lr=default_lr if request.lr is None else request.lr,
        batches=batches,
        looks=tuple(sorted(at)),
        seed=request.seed,
        threads=positive("--threads", request.threads, usable_cores()),
    )


def load(task: str) -> Task:
    """The task at its smallest size."""
    return TASKS[task].load(TASKS[task].setup(Asked()).settings)
