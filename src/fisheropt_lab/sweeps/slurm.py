"""Executor on a cluster, by submitit (extra `[slurm]`): the same jobs, one Slurm job each.

The working folder must be one that the cluster's machines share; results come back through it, and this process, which
has to keep running, writes them into the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fisheropt_lab.errors import LabError
from fisheropt_lab.sweeps.job import Job, Result, Told, run_job

LOOK_EVERY = {"slurm": 10.0}  # seconds; other kinds of cluster are on this machine
LOOK_EVERY_HERE = 0.2


class Submitit:
    """Submits every job, and yields results as they come."""

    def __init__(self, folder: Path, parameters: dict[str, Any], cluster: str = "slurm") -> None:
        """`parameters`: submitit's, such as slurm_partition, timeout_min, cpus_per_task. `cluster`: "slurm", or
        "local" (a process per job, here) or "debug" (in this process), which are for trying things out.

        Raises:
            LabError: submitit is not installed, there is no such cluster here, or a parameter is unknown.
        """
        try:
            import submitit
        except ImportError:
            raise LabError("a cluster needs submitit: pip install 'fisheropt[slurm]'") from None
        self.wait = LOOK_EVERY.get(cluster, LOOK_EVERY_HERE)
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(**parameters)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise LabError(f"submitit: {error}") from None
        self.running: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for job in self.running:
            job.cancel()

    def run(self, jobs: Sequence[Job], told: Told) -> Iterator[Result]:
        with self.executor.batch():
            self.running = [self.executor.submit(run_job, job) for job in jobs]
        while self.running:
            done = [job for job in self.running if job.done()]
            for job in done:
                self.running.remove(job)
                yield job.result()
            if not done:
                time.sleep(self.wait)
