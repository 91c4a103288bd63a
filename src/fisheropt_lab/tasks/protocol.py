"""What the lab asks of a task. Everything else (trials, selection, timing, report) is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass(frozen=True)
class Metric:
    """What a task quotes of the test split besides its loss. It chooses nothing."""

    name: str
    unit: str
    factor: float  # from what the task computes to the unit
    digits: int  # after the point, in the table


class Task(Protocol):
    """Model, data, loss and metrics. Nothing here may depend on the optimizer: that is what makes a comparison."""

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

    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        """The kind's metrics over a split, by their names."""
        ...


@dataclass(frozen=True)
class Asked:
    """The options of a comparison that are a task's to interpret, as typed; None is "not given"."""

    size: str | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Setup:
    """What a task makes of its options before it loads anything."""

    settings: dict[str, Any]  # plain JSON values: the task's part of the spec
    steps: int  # per trial, in the default preset
    load: Callable[[], Task]


@dataclass(frozen=True)
class TaskKind:
    """What is known of a task before a comparison begins."""

    about: str  # a few words for --help
    units: tuple[Unit, ...]  # losses are quoted in; the first is the unit of the loss itself
    optimizers: str  # compared if none are named, the baseline first
    options: frozenset[str]  # the fields of `Asked` it understands
    setup: Callable[[Asked], Setup]  # refuses what cannot be, with one line
    metrics: tuple[Metric, ...] = ()
    lrs: Mapping[str, float] = field(default_factory=dict)  # the middle of a grid, where it is not the contender's own
