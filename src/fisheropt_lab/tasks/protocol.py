"""What the lab asks of a task. Everything else (trials, selection, timing, report) is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Split = Literal["validation", "test"]
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Unit:
    """A unit the task's loss is quoted in: its name, and what the loss is multiplied by."""

    name: str
    per_loss: float


class Task(Protocol):
    """Model, data, loss and metric. Nothing here may depend on the optimizer: that is what makes a comparison."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units losses are quoted in; the first is the unit of `loss` itself."""
        ...

    def describe_data(self) -> dict[str, Any]:
        """Source, hash and split sizes: identifies the data, goes into results.json and the report."""
        ...

    def protocol(self, steps: int) -> list[str]:
        """What a reader of the report must know of model, data and batches, a sentence each."""
        ...

    def model(self, seed: int) -> nn.Module:
        """A fresh model on the CPU; its weights are a function of the seed."""
        ...

    def batch(self, seed: int, step: int) -> Batch:
        """The training batch of one step, a function of seed and step: so a resumed trial sees the same ones."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean training loss of a batch, a scalar with a graph."""
        ...

    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """Mean loss over a fixed part of a split."""
        ...
