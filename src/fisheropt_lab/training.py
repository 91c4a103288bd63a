"""One trial: the only training loop of the lab."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt_lab.clock import now
from fisheropt_lab.files import load_tensors, save_tensors
from fisheropt_lab.optimizers import backends_of, contender, curvature_of, state_bytes
from fisheropt_lab.record import Evaluation, Record
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.tasks import Task

OnStep = Callable[[int, float, float], None]  # steps done, training loss, learning rate


@dataclass(frozen=True)
class Checkpoints:
    """Where a trial keeps its way back, and how often it writes it."""

    path: Path
    every_seconds: float = 15.0
    share: float = 0.05  # of the time at most goes into writing: large models checkpoint more rarely

    def due(self, since_last: float, cost_of_last: float) -> bool:
        """Whether it is time for the next one."""
        return since_last >= max(self.every_seconds, cost_of_last / self.share)


def run_trial(
    task: Task, spec: Spec, trial: Trial, checkpoints: Checkpoints, on_step: OnStep
) -> tuple[Record, nn.Module]:
    """Train from the last checkpoint, or from the beginning, to the end; the record and the trained model.

    Every random choice is a function of (seed, step), so that an interrupted trial ends with the very same losses as
    one that was left alone.
    """
    device = torch.device(spec.device)
    model = task.model(trial.seed).to(device)
    optimizer = contender(trial.optimizer).build(model, trial.lr, spec.backend, dict(trial.options))
    record = _restore(checkpoints.path, model, optimizer) or Record(trial)

    saved_at, save_cost = time.perf_counter(), 0.0
    for step in range(len(record.train_loss), spec.steps):
        lr = trial.lr * lr_scale(step, spec.steps, spec.warmup)
        loss = _training_step(task, spec, model, optimizer, record, lr, step, device)
        if not math.isfinite(loss):
            record.diverged_at_step = step
            break
        on_step(step + 1, loss, lr)
        if (step + 1) % spec.eval_every == 0 or step + 1 == spec.steps:
            validation = task.evaluate(model, "validation", device)
            if not math.isfinite(validation):
                record.diverged_at_step = step + 1
                break
            record.evaluations.append(Evaluation(step + 1, record.seconds, validation))
        if checkpoints.due(time.perf_counter() - saved_at, save_cost):
            started = time.perf_counter()
            _save(checkpoints.path, model, optimizer, record)
            saved_at = time.perf_counter()
            save_cost = saved_at - started

    if record.diverged_at_step is None:
        record.validation_loss = record.evaluations[-1].loss
        record.curvature = curvature_of(optimizer)
    record.parameters = sum(parameter.numel() for parameter in model.parameters())
    record.state_bytes = state_bytes(optimizer)
    record.backends = backends_of(optimizer)
    return record, model


def _training_step(
    task: Task,
    spec: Spec,
    model: nn.Module,
    optimizer: Optimizer,
    record: Record,
    lr: float,
    step: int,
    device: torch.device,
) -> float:
    """One update, timed; returns the loss before it. A loss that is not finite is not recorded and changes nothing."""
    started = now(device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    batch = tuple(part.to(device) for part in task.batch(record.trial.seed, step))
    loss = task.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
    value = loss.item()
    if math.isfinite(value):
        before = now(device)
        optimizer.step()
        after = now(device)
        record.train_loss.append(value)
        record.train_seconds.append(record.seconds + after - started)
        record.optimizer_ms.append((after - before) * 1e3)
    optimizer.zero_grad()
    return value


def _save(path: Path, model: nn.Module, optimizer: Optimizer, record: Record) -> None:
    save_tensors(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "record": record.to_json()})


def _restore(path: Path, model: nn.Module, optimizer: Optimizer) -> Record | None:
    """Put model and optimizer back where the checkpoint left them; None without a checkpoint."""
    if not path.exists():
        return None
    checkpoint = load_tensors(path)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    record = Record.from_json(checkpoint["record"])
    record.resumed_at_steps.append(len(record.train_loss))
    return record
