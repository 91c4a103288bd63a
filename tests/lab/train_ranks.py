"""What two processes of a test run: the command `fisheropt` with each of several lists of arguments.

    python -m tests.lab.train_ranks LISTS.json

One launch serves all lists, and this process imports everything once and forks the two: starting processes costs more
than the training they do. They have the environment that torchrun would give them; torchrun itself starts those of
benchmarks/fault_drills.py.
"""

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch._dynamo  # noqa: F401 (the first step of an optimizer would, in each process)
import torch.distributed as dist

from fisheropt_lab import cli

SIZE = 2


def rank_of(rank: int, lists: list[list[str]], meet: Path) -> None:
    """What one process does."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    store = f"file://{meet}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=60))
    for arguments in lists:
        sys.argv = ["fisheropt", *arguments]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
    dist.destroy_process_group()


def main(path: Path) -> int:
    lists = json.loads(path.read_text())
    ranks = []
    for rank in range(SIZE):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                rank_of(rank, lists, path.with_suffix(".meet"))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)  # no process waits for another's interpreter to wind down
        ranks.append(pid)
    ended = [os.waitpid(pid, 0)[1] for pid in ranks]
    return int(any(ended))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
