"""What the lab asks of a task. Everything else (tuning, seeds, sweeps, timing, report) is the same for all of them.

A new task is a folder beside `text` with

    a settings dataclass   what decides its numbers, in plain JSON values: size, batch, data, loss
    a class that is a `Task`, built from the settings alone, in any process, as often as wanted
    a `TaskKind`           what is known of it before anything is loaded

and a line in `fisheropt_lab.tasks`. `digits` is the smallest example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fisheropt_lab.record import Exhibit

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
    higher_is_better: bool = False


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
        """Mean training loss of a batch, a scalar with a graph, in the task's first unit."""
        ...

    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """Mean loss over a fixed part of a split, in the task's first unit."""
        ...

    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        """The kind's metrics over a split, by their names."""
        ...

    def exhibits(self, model: nn.Module, device: torch.device) -> Iterable[Exhibit]:
        """What a reader may look at or read of a trained model: a few transcripts, a few pictures; or nothing."""
        ...


@dataclass(frozen=True)
class Asked:
    """The options of a study that are a task's to interpret, as typed; None is "not given"."""

    size: str | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    set: Mapping[str, str] = field(default_factory=dict)  # --set NAME=VALUE: what only this task knows


@dataclass(frozen=True)
class Setup:
    """What a task makes of its options before it loads anything."""

    settings: dict[str, Any]  # plain JSON values: the task's part of the spec
    steps: int  # per trial, in the default preset


@dataclass(frozen=True)
class Outline:
    """A model without weights (on the meta device), to be measured and not run: for `fisheropt info TASK`."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]  # the training loss of one batch of meta tensors: a graph without numbers
    batch: str  # what the batch is, in words


@dataclass(frozen=True)
class TaskKind:
    """What is known of a task before a study begins."""

    about: str  # a few words for --help
    units: tuple[Unit, ...]  # losses are quoted in; the first is the unit of the loss itself
    optimizers: str  # compared if none are named, the baseline first
    options: frozenset[str]  # the fields of `Asked`, and names for --set, that it understands
    setup: Callable[[Asked], Setup]  # refuses what cannot be, with one line
    load: Callable[[Mapping[str, Any]], Task]  # from the settings that `setup` made
    outline: Callable[[Mapping[str, Any]], Outline]  # from the same settings; loads no data
    sizes: tuple[str, ...] = ()  # of the model, smallest first; empty: it has one size
    metrics: tuple[Metric, ...] = ()
    lrs: Mapping[str, float] = field(default_factory=dict)  # the middle of a grid, where it is not the contender's own
    quick: Mapping[str, Any] = field(
        default_factory=dict
    )  # fields of `Asked` that --quick sets where they are not given
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For `ablate loss`: label -> the settings that choose the loss, the recommended one first. Losses cannot be
    compared with one another, so the first of `metrics` judges."""
