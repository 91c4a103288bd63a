"""The processes that train together, or the one that trains alone: the only place that talks between processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fisheropt_lab.errors import LabError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all. With a size of one nothing is ever sent."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sums(self, *numbers: float) -> list[float]:
        """Sums over all processes, in float64: one small message for all the numbers."""
        if self.size == 1:
            return list(numbers)
        buffer = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(buffer)
        return buffer.tolist()

    def once(self, do: Callable[[], T]) -> T:
        """The first process does it; every process gets the result, or the LabError. Ends when all have it."""
        outcome: list[Any] = [_caught(do) if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        value: T = _result(outcome[0])
        return value

    def everywhere(self, do: Callable[[], T]) -> list[T]:
        """Every process does it; each gets all the results, by rank, or the LabError of the first that failed."""
        mine = _caught(do)
        outcomes: list[Any] = [mine]
        if self.size > 1:
            outcomes = [None] * self.size
            dist.all_gather_object(outcomes, mine)
        return [_result(outcome) for outcome in outcomes]


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """The world torchrun describes in the environment, or a process alone: gloo on CPU, NCCL on CUDA.

    On CUDA each process takes the device of its local rank. A program that has joined its processes already stays so.
    """
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def _caught(do: Callable[[], T]) -> tuple[T | None, LabError | None]:
    try:
        return do(), None
    except LabError as error:
        return None, error


def _result(outcome: Any) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
