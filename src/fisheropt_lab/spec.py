"""What a comparison is: everything that decides its numbers, as data; and the trials that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

GRID_FACTOR = 2.0  # between neighbouring learning rates, for every optimizer


@dataclass(frozen=True)
class Preset:
    """How much a comparison does. Every optimizer gets the same number of learning rates and seeds."""

    grid_points: int
    step_fraction: float  # of the steps the task's size asks for
    seeds: int
    evaluations: int  # per trial, of the validation loss


PRESETS: dict[str, Preset] = {
    "default": Preset(grid_points=5, step_fraction=1.0, seeds=3, evaluations=15),
    "quick": Preset(grid_points=3, step_fraction=0.2, seeds=3, evaluations=10),
}


@dataclass(frozen=True)
class Trial:
    """One training run: everything else about it is in the spec."""

    optimizer: str
    lr: float
    seed: int

    @property
    def id(self) -> str:
        """Names the trial's files."""
        return f"{self.optimizer}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Spec:
    """One comparison. Two runs with equal specs, on one machine and one set of versions, give equal losses."""

    task: str
    preset: str
    settings: dict[str, Any]  # the task's own part: model size, batch, data
    data: dict[str, Any]  # what the task says identifies its data
    lrs: dict[str, tuple[float, ...]]  # per optimizer, in the user's order; the first optimizer is the baseline
    steps: int
    warmup: int  # steps
    eval_every: int  # steps
    seeds: tuple[int, ...]  # learning rates are chosen on the first
    grad_clip: float  # bound on the global L2 norm of the gradient, the same for every optimizer
    backend: str  # of fisheropt's optimizers
    device: str
    threads: int

    @property
    def optimizers(self) -> tuple[str, ...]:
        """In the user's order."""
        return tuple(self.lrs)

    @property
    def baseline(self) -> str:
        """The optimizer the others are measured against."""
        return self.optimizers[0]

    def search_trials(self) -> list[Trial]:
        """Every learning rate of every optimizer on the first seed. The optimizers take turns, so that a machine that
        slows down for a while slows all of them."""
        points = len(self.lrs[self.baseline])
        return [Trial(name, self.lrs[name][i], self.seeds[0]) for i in range(points) for name in self.optimizers]

    def repeat_trials(self, best_lr: dict[str, float]) -> list[Trial]:
        """The chosen learning rate of each optimizer on the remaining seeds."""
        return [Trial(name, lr, seed) for seed in self.seeds[1:] for name, lr in best_lr.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; equal specs give equal JSON."""
        return asdict(self) | {"lrs": {name: list(lrs) for name, lrs in self.lrs.items()}, "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Spec:
        """The inverse of `to_json`."""
        lrs = {name: tuple(lrs) for name, lrs in value["lrs"].items()}
        return cls(**(value | {"lrs": lrs, "seeds": tuple(value["seeds"])}))


def grid(centre: float, multipliers: tuple[float, ...]) -> tuple[float, ...]:
    """Learning rates around a centre, rounded to six digits so that they print as they are."""
    return tuple(float(f"{centre * multiplier:.6g}") for multiplier in multipliers)


def multipliers(points: int) -> tuple[float, ...]:
    """`points` multipliers a factor GRID_FACTOR apart around 1: (0.5, 1, 2) for three."""
    return tuple(GRID_FACTOR ** (i - (points - 1) / 2) for i in range(points))
