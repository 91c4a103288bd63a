"""Many short trainings: what one is, where the results go, and who runs them.

job.py      one training as plain data, and the function that runs it: the same for every executor
store.py    the results of a sweep, one SQLite file
local.py    executor: this process, or a process per core
slurm.py    executor: a cluster, by submitit
sweep.py    runs what the store does not have yet
"""

from __future__ import annotations

from fisheropt_lab.sweeps.job import Job, run_job
from fisheropt_lab.sweeps.store import Store
from fisheropt_lab.sweeps.sweep import Executor, Sweep

__all__ = ["Executor", "Job", "Store", "Sweep", "run_job"]
