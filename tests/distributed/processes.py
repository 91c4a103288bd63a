"""Runs the checks in groups of 2 and of 4 processes: ``python -m tests.distributed.processes FOLDER``.

A check returns a number that has to be small, usually how far training is from that of a single process, relative to
the size of the move. Every rank computes what it compares with for itself, from the same seeds. What the checks of
one group save in FOLDER those of later groups load.

This process imports everything once and forks the ranks; starting them one by one would cost more than the checks.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

Check = Callable[[Path], float]
CHECKS: dict[str, tuple[Check, tuple[int, ...]]] = {}  # name -> what, and the numbers of processes to run it on

GROUPS = (2, 4)


def check(*sizes: int) -> Callable[[Check], Check]:
    """Run the function on these numbers of processes; without any, on 2 and on 4."""

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = function, sizes or (2, 4)
        return function

    return register


def rank_of(rank: int, size: int, folder: Path) -> None:
    """What each process of a group does."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that what differs is the optimizer, not the order of a layer's sums
    store = f"file://{folder}/meet-{size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    for name, (run, sizes) in CHECKS.items():
        if size not in sizes:
            continue
        error = ""
        try:
            found = run(folder)
        except Exception:
            found, error = float("inf"), traceback.format_exc()
        worst = torch.tensor(found, dtype=torch.float64)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        if rank == 0 or error:
            line = {"check": name, "size": size, "rank": rank, "found": worst.item(), "error": error}
            print(json.dumps(line), flush=True)
    dist.destroy_process_group()


def main(folder: Path) -> None:
    for size in GROUPS:
        ranks = []
        for rank in range(size):
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    rank_of(rank, size, folder)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            ranks.append(pid)
        ended = [os.waitpid(pid, 0)[1] for pid in ranks]
        if any(ended):
            sys.exit(f"a process of the group of {size} ended early")
