"""From what the user typed to a plan and its execution, with one clear line for everything that cannot be."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import usable_cores
from fisheropt_lab.optimizers import backends_on, contender
from fisheropt_lab.options import known, positive
from fisheropt_lab.request import GRAD_CLIP, WARMUP_SHARE
from fisheropt_lab.tasks.protocol import Asked
from fisheropt_lab.tasks.text.task import TEXT, TextTask
from fisheropt_lab.train.batches import rows_per_micro_batch
from fisheropt_lab.train.plan import Execution, Parallel, Plan, Precision

TASKS = ("text",)  # the small images of the other tasks need no second process
EVALUATIONS, CHECKPOINTS = 20, 10  # per run, unless the user says how often


@dataclass(frozen=True)
class TrainRequest:
    """The options of `fisheropt train`, as typed; None is "not given"."""

    task: str = "text"
    optimizer: str = "fadam"
    lr: float | None = None
    size: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    data: Path | None = None
    seed: int = 0
    precision: str = "float32"
    parallel: str | None = None
    accumulate: int = 1
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 3
    threads: int | None = None
    backend: str = "auto"
    monitor: int = 0


def prepare(request: TrainRequest, device: torch.device) -> tuple[TextTask, Plan, Execution]:
    """Check the request against the processes there are, load the data, and say what exactly will be done."""
    known("task", request.task, TASKS)
    kind = contender(request.optimizer)
    precision = known("precision", request.precision, get_args(Precision))
    parallel = _parallel(request.parallel)
    if request.monitor < 0:
        raise LabError(f"--monitor must be at least 0, not {request.monitor}")
    if request.monitor and parallel == "fsdp2":
        raise LabError("--monitor looks at whole tensors, and fsdp2 shards them; use --parallel ddp")
    lr = kind.lr if request.lr is None else request.lr
    if not (math.isfinite(lr) and lr > 0):
        raise LabError(f"a learning rate must be positive and finite, not {lr}")
    if request.seed < 0:
        raise LabError(f"--seed must be at least 0, not {request.seed}")
    setup = TEXT.setup(Asked(request.size, request.batch_size, request.seq_len, request.data))
    steps = positive("--steps", request.steps, setup.steps)
    execution = Execution(
        parallel=parallel,
        accumulate=positive("--accumulate", request.accumulate, 1),
        checkpoint_every=positive("--checkpoint-every", request.checkpoint_every, -(-steps // CHECKPOINTS)),
        keep=positive("--keep", request.keep, 1),
        backend=request.backend,
        threads=positive("--threads", request.threads, max(1, usable_cores() // _from_torchrun("LOCAL_WORLD_SIZE"))),
        monitor=request.monitor,
    )
    rows_per_micro_batch(setup.settings["batch_size"], _from_torchrun("WORLD_SIZE"), execution.accumulate)
    backends_on(device, kind.name, request.backend)
    task = TEXT.load(setup.settings)
    assert isinstance(task, TextTask)
    plan = Plan(
        task=request.task,
        settings=setup.settings,
        data=task.describe_data(),
        optimizer=kind.name,
        lr=lr,
        steps=steps,
        warmup=max(1, round(WARMUP_SHARE * steps)),
        eval_every=positive("--eval-every", request.eval_every, -(-steps // EVALUATIONS)),
        seed=request.seed,
        grad_clip=GRAD_CLIP,
        precision=precision,  # type: ignore[arg-type]
    )
    return task, plan, execution


def _parallel(asked: str | None) -> Parallel:
    """What was asked for, if the processes allow it; else DDP on several processes, and nothing on one."""
    several, started = _from_torchrun("WORLD_SIZE") > 1, "RANK" in os.environ
    name = known("way to be parallel", asked or ("ddp" if several else "none"), get_args(Parallel))
    if name == "none" and several:
        raise LabError("--parallel none on several processes would train as many models; use ddp or fsdp2")
    if name != "none" and not started:
        raise LabError(
            f"--parallel {name} needs processes to be started by torchrun: "
            f"torchrun --nproc-per-node=2 -m fisheropt_lab train text --parallel {name}"
        )
    return name  # type: ignore[return-value]


def _from_torchrun(variable: str) -> int:
    """A number that torchrun puts into the environment; 1 without it."""
    return int(os.environ.get(variable, "1"))
