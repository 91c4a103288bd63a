"""The training loop. On one process or many, it is the loop of `fisheropt compare` with the sums taken over all."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import Monitor
from fisheropt_lab.clock import now
from fisheropt_lab.errors import LabError
from fisheropt_lab.optimizers import contender
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.tasks.text.task import TextTask
from fisheropt_lab.train.batches import micro_batches, rows_per_micro_batch
from fisheropt_lab.train.checkpoints import Checkpoints
from fisheropt_lab.train.display import Display
from fisheropt_lab.train.evaluation import validation_loss
from fisheropt_lab.train.folder import Line, TrainFolder
from fisheropt_lab.train.manifest import Manifest, require_same_run
from fisheropt_lab.train.parallel import distribute, gradients_stay_local, precise
from fisheropt_lab.train.plan import Execution, Plan
from fisheropt_lab.train.state import read_state, shapes_of, write_state
from fisheropt_lab.train.stop import SIGNALS, StopWish
from fisheropt_lab.train.world import World


@dataclass(frozen=True)
class End:
    """How training ended."""

    step: int  # updates done
    seconds: float  # of training, evaluations and checkpoints left out
    signal: int = 0  # that stopped it, or 0
    diverged: bool = False


class Training:
    """One run: model, optimizer and where they are kept. All processes build it and call `run` at the same time."""

    def __init__(self, task: TextTask, plan: Plan, execution: Execution, folder: TrainFolder, world: World) -> None:
        self.task, self.plan, self.execution, self.folder, self.world = task, plan, execution, folder, world
        self.kind = contender(plan.optimizer)
        self.rows = rows_per_micro_batch(task.settings.batch_size, world.size, execution.accumulate)
        self.model = distribute(task.model(plan.seed), execution.parallel, plan.precision, world)
        self.optimizer = self._build()
        self.checkpoints = Checkpoints(folder.checkpoints, execution.keep, world)
        self.step = self.saved = 0
        self.seconds = 0.0

    def restore(self) -> Path | None:
        """Go to the newest complete checkpoint, and the metrics with it; the folder, or None if there is none."""
        parameters = shapes_of(self.model)
        found = self.checkpoints.newest(partial(require_same_run, plan=self.plan, parameters=parameters))
        if found is not None:
            folder, manifest = found
            read_state(folder, self.model, self.optimizer, self.kind.watches, self.world)
            self.step = self.saved = manifest.step
            self.seconds = manifest.seconds
        self.world.once(lambda: self.folder.rewind(self.step))
        return None if found is None else found[0]

    def run(self, display: Display, wish: StopWish) -> End:
        """Train to the end, to a loss that is not finite, or until somebody wishes to stop; then there is a checkpoint
        of the last step."""
        with self._monitored():
            return self._run(display, wish)

    def _run(self, display: Display, wish: StopWish) -> End:
        plan = self.plan
        while self.step < plan.steps:
            line, stopping = self._step(wish.signal)
            if not math.isfinite(line["loss"]):
                return End(self.step, self.seconds, diverged=True)
            self.step = line["step"]
            if self.step % plan.eval_every == 0 or self.step == plan.steps:
                line["validation"] = validation_loss(self.task, self.model, plan.precision, self.rows, self.world)
            if self.world.first:
                self.folder.append(line)
                display.step(line)
            if stopping or self.step % self.execution.checkpoint_every == 0 or self.step == plan.steps:
                self.save()
            if stopping:
                return End(self.step, self.seconds, signal=stopping)
        return End(self.step, self.seconds)

    def save(self) -> None:
        """Make a checkpoint of this step, unless there is one."""
        if self.saved == self.step:
            return
        manifest = Manifest(
            step=self.step,
            seconds=self.seconds,
            plan=self.plan.to_json(),
            parameters=shapes_of(self.model),
            processes=self.world.size,
            parallel=self.execution.parallel,
            files={},
        )
        self.checkpoints.save(manifest, self._write)
        self.saved = self.step

    def _write(self, folder: Path) -> set[str]:
        return write_state(folder, self.model, self.optimizer, self.kind.watches, self.world)

    def _step(self, wish: int) -> tuple[Line, int]:
        """One update, timed: its line of metrics, and the signal that a process got, or 0. A loss that is not finite
        changes nothing."""
        plan, world = self.plan, self.world
        started = now(world.device)
        lr = plan.lr * lr_scale(self.step, plan.steps, plan.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = micro_batches(self.task.batch(plan.seed, self.step), world, self.execution.accumulate)
        mine = torch.zeros((), device=world.device)
        for i, batch in enumerate(batches):
            with gradients_stay_local(self.model, i + 1 < len(batches)):
                with precise(plan.precision, world.device):
                    loss = self.task.loss(self.model, batch) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
            mine += loss.detach()
        total, *wishes = world.sums(mine.item(), *(wish == signal for signal in SIGNALS))
        loss_of_all = total / world.size
        norm = _number(nn.utils.clip_grad_norm_(self.model.parameters(), plan.grad_clip))
        if math.isfinite(loss_of_all):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += now(world.device) - started
        line = {"step": self.step + 1, "loss": loss_of_all, "lr": lr, "grad_norm": norm, "seconds": self.seconds}
        return line, next((signal for signal, count in zip(SIGNALS, wishes, strict=True) if count), 0)

    def _monitored(self) -> AbstractContextManager[Any]:
        """Where the first process notes what steps do; its parameters are those of all."""
        if not (self.execution.monitor and self.world.first):
            return nullcontext()
        return Monitor(
            self.optimizer,
            every=self.execution.monitor,
            path=self.folder.monitor,
            model=getattr(self.model, "module", self.model),  # inside DistributedDataParallel
            step=self.step,
        )

    def _build(self) -> Optimizer:
        try:
            return self.kind.build(self.model, self.plan.lr, self.execution.backend)
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise LabError(f"{self.plan.optimizer}: {error}") from None


def _number(norm: torch.Tensor) -> float:
    """The norm of all gradients, which FSDP2 keeps as a sum still to be taken over the processes."""
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return float(whole)
