"""Which part of the global batch is whose.

The global batch of a step is a function of seed and step alone (`Task.batch`). Its rows are cut into as many equal
slices as there are processes, each slice into equal micro-batches. So every row is computed exactly once per step,
the mean over processes of the mean over micro-batches is the mean over the global batch, and a run that goes on with
another number of processes sees the same data.
"""

from __future__ import annotations

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.protocol import Batch
from fisheropt_lab.train.world import World


def rows_per_micro_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """Rows of one micro-batch; a global batch that cannot be cut into equal ones is refused."""
    rows, left = divmod(batch_size, world_size * accumulate)
    if left or not rows:
        raise LabError(
            f"a global batch of {batch_size} sequences cannot be cut into equal parts for {world_size} processes with "
            f"{accumulate} micro-batches each; give --batch-size a multiple of {world_size * accumulate}"
        )
    return rows


def micro_batches(batch: Batch, world: World, accumulate: int) -> list[Batch]:
    """This process's micro-batches, on its device: tensors of `rows_per_micro_batch` rows."""
    rows = rows_per_micro_batch(len(batch[0]), world.size, accumulate)
    first = world.rank * accumulate * rows
    starts = range(first, first + accumulate * rows, rows)
    return [tuple(part[start : start + rows].to(world.device) for part in batch) for start in starts]
