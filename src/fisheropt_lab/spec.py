"""What a study is: everything that decides its numbers, as data.

A study holds entries against one another: optimizers in a comparison, settings of one optimizer in an ablation. Which
trainings follow from it is decided in `fisheropt_lab.tuning` and `fisheropt_lab.tracks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

GRID_FACTOR = 2.0  # between neighbouring learning rates, for every optimizer
Settings = tuple[tuple[str, Any], ...]  # names and plain JSON values, sorted: what differs from the defaults


def settings(values: Mapping[str, Any]) -> Settings:
    """Hashable, in one order."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True)
class Preset:
    """How much a study does. Every entry gets the same number of trials and seeds."""

    grid_points: int  # learning rates to begin with
    most_lrs: int  # learning rates at most, where the best stays at an edge of the grid
    knob_values: int  # further values of the weight decay, and of beta2
    step_fraction: float  # of the steps the task's size asks for
    seeds: int  # fresh ones, reported
    evaluations: int  # per trial, of the validation loss


PRESETS: dict[str, Preset] = {
    "default": Preset(grid_points=5, most_lrs=9, knob_values=2, step_fraction=1.0, seeds=5, evaluations=15),
    "quick": Preset(grid_points=3, most_lrs=6, knob_values=1, step_fraction=0.2, seeds=5, evaluations=10),
}


@dataclass(frozen=True)
class Trial:
    """One training run: everything else about it is in the spec."""

    optimizer: str
    lr: float
    seed: int
    options: Settings = ()  # of the optimizer, besides its own
    settings: Settings = ()  # of the task, besides the study's

    @property
    def id(self) -> str:
        """Names the trial's files and its row in the store."""
        extra = "".join(f"-{name}{value:g}" if _number(value) else f"-{name}{value}" for name, value in self._extra)
        return f"{self.optimizer}{extra}-lr{self.lr:g}-seed{self.seed}"

    @property
    def _extra(self) -> Settings:
        return self.options + self.settings

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        """The inverse of dataclasses.asdict after a trip through JSON."""
        pairs = {name: tuple((key, item) for key, item in value.get(name, ())) for name in ("options", "settings")}
        return cls(value["optimizer"], value["lr"], value["seed"], **pairs)


@dataclass(frozen=True)
class Entry:
    """One line of a study: an optimizer, with what is fixed about it."""

    label: str
    optimizer: str
    options: Settings = ()
    settings: Settings = ()
    lrs: tuple[float, ...] = ()  # the learning rates tuning begins with, ascending

    def trial(self, lr: float, seed: int, knobs: Settings = ()) -> Trial:
        """A training run of this entry; a knob turned replaces what is fixed."""
        return Trial(self.optimizer, lr, seed, settings(dict(self.options) | dict(knobs)), self.settings)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Entry:
        """The inverse of dataclasses.asdict after a trip through JSON."""
        pairs = {name: tuple((key, item) for key, item in value[name]) for name in ("options", "settings")}
        return cls(**(value | pairs | {"lrs": tuple(value["lrs"])}))


@dataclass(frozen=True)
class Spec:
    """One study. Two runs with equal specs, on one machine and one set of versions, give equal losses."""

    study: str  # compare, or the name of the ablation
    task: str
    preset: str
    settings: dict[str, Any]  # the task's own part: model size, batch, data
    data: dict[str, Any]  # what the task says identifies its data
    entries: dict[str, Entry]  # by key, in the user's order; the first is what the others are held against
    most_lrs: int  # per entry
    knob_values: int  # per entry and knob, 0: only the learning rate is tuned
    steps: int
    warmup: int  # steps
    eval_every: int  # steps
    tuning_seed: int  # every choice is made on it
    seeds: tuple[int, ...]  # reported; the tuning seed is not among them
    grad_clip: float  # bound on the global L2 norm of the gradient, the same for every optimizer
    backend: str  # of fisheropt's optimizers
    device: str
    threads: int  # per training
    judge: str = ""  # the metric entries are held against one another by; "": the loss
    notes: tuple[str, ...] = field(default=())  # what a reader must know of this study, a sentence each

    @property
    def baseline(self) -> str:
        """The key of the entry the others are measured against."""
        return next(iter(self.entries))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; equal specs give equal JSON."""
        value: dict[str, Any] = _plain(asdict(self))
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Spec:
        """The inverse of `to_json`."""
        entries = {key: Entry.from_json(entry) for key, entry in value["entries"].items()}
        parts = {"entries": entries, "seeds": tuple(value["seeds"]), "notes": tuple(value["notes"])}
        return cls(**(value | parts))


def grid(centre: float, multipliers: tuple[float, ...]) -> tuple[float, ...]:
    """Learning rates around a centre, ascending."""
    return tuple(rounded(centre * multiplier) for multiplier in sorted(multipliers))


def rounded(lr: float) -> float:
    """To six digits, so that a learning rate prints as it is."""
    return float(f"{lr:.6g}")


def multipliers(points: int) -> tuple[float, ...]:
    """`points` multipliers a factor GRID_FACTOR apart around 1: (0.5, 1, 2) for three."""
    return tuple(GRID_FACTOR ** (i - (points - 1) / 2) for i in range(points))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
