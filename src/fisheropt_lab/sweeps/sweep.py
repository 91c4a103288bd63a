"""A sweep: trainings that are run unless the store has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fisheropt_lab.clock import timestamp
from fisheropt_lab.progress import Progress
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.sweeps.job import Job, Result, Told
from fisheropt_lab.sweeps.store import Store


class Executor(Protocol):
    """Runs jobs, somewhere; a context manager that cleans up behind itself, also after an interruption."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def run(self, jobs: Sequence[Job], told: Told) -> Iterator[Result]:
        """The results in the order in which they finish. `told` hears of steps meanwhile, where that is possible."""
        ...


class Sweep:
    """The trainings of one spec: those of the store, and those an executor runs."""

    def __init__(
        self,
        spec: Spec,
        store: Store,
        checkpoints: Path,
        executor: Executor,
        progress: Progress,
        checkpoint_seconds: float = 15.0,
    ) -> None:
        self.spec, self.store, self.checkpoints = spec, store, checkpoints
        self.executor, self.progress, self.checkpoint_seconds = executor, progress, checkpoint_seconds

    def run(self, trials: Iterable[Trial], tested: bool) -> None:
        """Train what is missing. `tested`: these are reported, so the test split is asked at the end of each."""
        found, spec = self.store.records(), self.spec.to_json()
        jobs = [
            Job(spec, trial, tested, self.checkpoints / f"{trial.id}.pt", self.checkpoint_seconds)
            for trial in trials
            if trial not in found
        ]
        for result in self.executor.run(jobs, self.progress.step):
            result.record.finished = timestamp()
            self.store.add(result)
            (self.checkpoints / f"{result.record.trial.id}.pt").unlink(missing_ok=True)
            self.progress.trial_finished(result.record)
