"""From trials to the numbers of the table. Pure: records in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.record import LayerCurvature, Record
from fisheropt_lab.selection import best_lrs
from fisheropt_lab.spec import Spec
from fisheropt_lab.timing import StepTime


@dataclass(frozen=True)
class Spread:
    """One number per seed, and what they amount to."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; one seed has none."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Reach:
    """Steps until the baseline's best validation loss, seed by seed: each seed has its own target."""

    steps: tuple[int | None, ...]  # None: not within the run

    @property
    def reached(self) -> int:
        """Seeds that got there."""
        return sum(step is not None for step in self.steps)

    @property
    def median(self) -> float | None:
        """Over all seeds, one that never got there counting as infinite; None if that makes the median infinite."""
        middle = median(float("inf") if step is None else step for step in self.steps)
        return None if middle == float("inf") else middle


@dataclass(frozen=True)
class NearDamping:
    """The share of AdaFisher's F within 10 % of its damping when training ended, in [0, 1], mean over seeds."""

    of_weights: float
    median_layer: float  # the median over the parameters of a model


@dataclass(frozen=True)
class Row:
    """One optimizer's line in the table. None where nothing can be said, because trials diverged."""

    optimizer: str
    label: str
    lrs: tuple[float, ...]
    best_lr: float | None
    edge: Literal["lowest", "highest"] | None  # the best lr lies at this end of the grid: a wider grid may do better
    validation: Spread | None  # final, at the best lr
    test: Spread | None
    metrics: dict[str, Spread | None]  # the task's, on the test split
    near_damping: NearDamping | None  # AdaFisher's alone
    reach: Reach | None
    step_time: StepTime | None  # optimizers taking turns
    optimizer_ms_in_training: float | None  # median over the steps at the best lr
    state_bytes_per_parameter: float | None
    trials: int
    diverged: int  # of the trials
    diverged_at_best: int  # of the seeds at the best lr


def summarise(
    spec: Spec,
    records: list[Record],
    test_losses: dict[str, float],
    step_times: dict[str, StepTime],
    test_metrics: Mapping[str, dict[str, float]] | None = None,
) -> list[Row]:
    """A row per optimizer, in the spec's order. Test losses and metrics are keyed by trial id."""
    search = [record for record in records if record.trial.seed == spec.seeds[0]]
    chosen = best_lrs(spec, search)
    at_best = {
        name: sorted(
            (r for r in records if (r.trial.optimizer, r.trial.lr) == (name, lr)),
            key=lambda record: spec.seeds.index(record.trial.seed),
        )
        for name, lr in chosen.items()
    }
    targets = {record.trial.seed: best_validation(record) for record in at_best.get(spec.baseline, [])}
    return [
        _row(spec, name, records, at_best.get(name, []), targets, test_losses, test_metrics or {}, step_times.get(name))
        for name in spec.optimizers
    ]


def best_validation(record: Record) -> float | None:
    """The lowest validation loss a trial ever had."""
    return min((evaluation.loss for evaluation in record.evaluations), default=None)


def steps_to(target: float | None, record: Record) -> int | None:
    """Steps until the first evaluation at or below the target."""
    if target is None:
        return None
    return next((evaluation.step for evaluation in record.evaluations if evaluation.loss <= target), None)


def _row(
    spec: Spec,
    name: str,
    records: list[Record],
    at_best: list[Record],
    targets: dict[int, float | None],
    test_losses: dict[str, float],
    test_metrics: Mapping[str, dict[str, float]],
    step_time: StepTime | None,
) -> Row:
    mine = [record for record in records if record.trial.optimizer == name]
    lrs = tuple(sorted(spec.lrs[name]))
    best_lr = at_best[0].trial.lr if at_best else None
    finished = [record for record in mine if record.parameters and record.state_bytes]
    tested = [test_metrics.get(record.trial.id, {}) for record in at_best]
    return Row(
        optimizer=name,
        label=CONTENDERS[name].label,
        lrs=lrs,
        best_lr=best_lr,
        edge=_edge(best_lr, lrs),
        validation=_spread([record.validation_loss for record in at_best]),
        test=_spread([test_losses.get(record.trial.id) for record in at_best]),
        metrics={metric: _spread([scores.get(metric) for scores in tested]) for scores in tested for metric in scores},
        near_damping=_near_damping([record.curvature for record in at_best if record.curvature]),
        reach=Reach(tuple(steps_to(targets.get(r.trial.seed), r) for r in at_best)) if at_best and targets else None,
        step_time=step_time,
        optimizer_ms_in_training=median(ms for r in at_best for ms in r.optimizer_ms) if at_best else None,
        state_bytes_per_parameter=finished[0].state_bytes / finished[0].parameters if finished else None,
        trials=len(mine),
        diverged=sum(record.diverged_at_step is not None for record in mine),
        diverged_at_best=sum(record.diverged_at_step is not None for record in at_best),
    )


def _near_damping(models: list[dict[str, LayerCurvature]]) -> NearDamping | None:
    if not models:
        return None
    layers = [list(model.values()) for model in models]
    near = [sum(one.near_damping * one.entries for one in model) for model in layers]
    return NearDamping(
        of_weights=fmean(n / sum(one.entries for one in model) for n, model in zip(near, layers, strict=True)),
        median_layer=fmean(median(one.near_damping for one in model) for model in layers),
    )


def _edge(best: float | None, lrs: tuple[float, ...]) -> Literal["lowest", "highest"] | None:
    if best is None or len(lrs) == 1:
        return None
    return "lowest" if best == lrs[0] else "highest" if best == lrs[-1] else None


def _spread(values: list[float | None]) -> Spread | None:
    """None as soon as one value is missing: a mean over the survivors would flatter."""
    present = [value for value in values if value is not None]
    return Spread(tuple(present)) if present and len(present) == len(values) else None
