"""What an ablation is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Losses = Mapping[str, Mapping[str, Any]]  # of a task: label -> the settings that choose it


@dataclass(frozen=True)
class Arm:
    """An optimizer with something changed."""

    label: str
    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the optimizer
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the task
    line: str = ""  # arms with the same one are joined in the picture
    x: float | None = None  # where on the axis; None: a level of its own, not a point of a line


@dataclass(frozen=True)
class Ablation:
    """A study of one choice. `arms(quick, losses)`: by key; the first is what the others are held against."""

    name: str  # on the command line
    title: str
    source: str  # where the paper does this
    axis: str  # what the picture has on its axis
    arms: Callable[[bool, Losses], dict[str, Arm]]
    grid_points: int = 3
    step_share: float = 0.6  # of the steps a comparison takes: there are many arms
    logarithmic: bool = True  # the axis
    losses: bool = False  # the arms differ in the task's loss, so that a metric judges
    notes: tuple[str, ...] = ()  # for the report
