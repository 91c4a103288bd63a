"""The validation loss, its windows shared out over the processes."""

from __future__ import annotations

import torch
from torch import nn

from fisheropt_lab.tasks.text.task import TextTask
from fisheropt_lab.train.parallel import precise
from fisheropt_lab.train.plan import Precision
from fisheropt_lab.train.world import World


@torch.no_grad()
def validation_loss(task: TextTask, model: nn.Module, precision: Precision, rows: int, world: World) -> float:
    """The mean over the validation windows, the same number on every process; at most `rows` at once.

    Every process calls the model equally often, because a sharded one needs all of them for every call; one that has
    no window left looks at one again and does not count it.
    """
    windows = task.windows("validation")
    count = len(windows[0])
    mine = torch.arange(world.rank, count, world.size)
    calls = -(-count // (world.size * rows))
    total = 0.0
    for i in range(calls):
        indices = mine[i * rows : (i + 1) * rows]
        counted = len(indices)
        batch = tuple(part[indices if counted else [0]].to(world.device) for part in windows)
        with precise(precision, world.device):
            total += task.loss(model, batch).item() * counted
    return world.sums(total)[0] / count
