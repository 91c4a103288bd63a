"""One training of a sweep as plain data, and the function that runs it. Every executor runs the same function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fisheropt_lab.record import HeldOut, Record
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.tasks import TASKS, Task
from fisheropt_lab.training import Checkpoints, run_trial

Told = Callable[[str, int, float], None]  # trial id, steps done, training loss


@dataclass(frozen=True)
class Job:
    """A training run and what is to be asked of it. Picklable, and independent of this process."""

    spec: dict[str, Any]  # Spec.to_json()
    trial: Trial
    tested: bool  # whether the test split is asked at the end; only a reported seed may
    checkpoint: Path
    checkpoint_seconds: float = 15.0


@dataclass(frozen=True)
class Result:
    """What came of a job."""

    record: Record
    tested: HeldOut | None


class SplitError(Exception):
    """Somebody wants to look at the test split with a seed that choices are made on. A mistake in the program."""


def run_job(job: Job, told: Told = lambda *_: None) -> Result:
    """Train, from the job's checkpoint if there is one, and ask the test split if it is time to.

    Raises:
        SplitError: the test split is wanted with a seed that is not one of the reported ones.
    """
    spec = Spec.from_json(job.spec)
    if job.tested and (job.trial.seed not in spec.seeds or job.trial.seed == spec.tuning_seed):
        raise SplitError(f"{job.trial.id}: the test split is for the reported seeds {spec.seeds}")
    if spec.device == "cpu":
        torch.set_num_threads(spec.threads)
    task = load_task(spec.task, json.dumps(spec.settings | dict(job.trial.settings), sort_keys=True))
    checkpoints = Checkpoints(job.checkpoint, job.checkpoint_seconds)
    record, model = run_trial(task, spec, job.trial, checkpoints, lambda done, loss, lr: told(job.trial.id, done, loss))
    tested = None
    if job.tested and record.validation_loss is not None:
        device = torch.device(spec.device)
        tested = HeldOut(
            loss=task.evaluate(model, "test", device),
            metrics=task.metrics(model, "test", device),
            exhibits=tuple(task.exhibits(model, device)) if job.trial.seed == spec.seeds[0] else (),
        )
    return Result(record, tested)


@lru_cache(maxsize=2)  # an ablation of the loss has two settings of one task
def load_task(name: str, settings: str) -> Task:
    """The task, loaded once per process. `settings`: JSON, because a key must be hashable."""
    return TASKS[name].load(json.loads(settings))
