"""From trainings to the numbers of the table. Pure: results in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median, stdev

from fisheropt_lab.intervals import Paired, paired
from fisheropt_lab.record import LayerCurvature, Record
from fisheropt_lab.spec import Settings, Spec, Trial
from fisheropt_lab.sweeps.job import Result
from fisheropt_lab.timing import StepTime
from fisheropt_lab.tracks import DROP_IN, TUNED, Tracks
from fisheropt_lab.tuning import Choice, lr_trials

TARGET_SLACK = 0.01  # of the loss: so that the baseline itself gets to its target on most seeds
WORKS_WITHIN = 0.05  # of the loss: a learning rate that ends this close to the best one works


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
    """Steps until the target, seed by seed. The target is one number, frozen before the seeds were trained."""

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
class Track:
    """An entry's results on fresh seeds, in one track. None where a seed diverged: a mean over the survivors would
    flatter."""

    lr: float
    knobs: Settings
    trials: tuple[Trial, ...]
    validation: Spread | None
    test: Spread | None
    metrics: dict[str, Spread | None]  # the task's, on the test split
    difference: Paired | None  # of what the entries are judged by, to the tuned baseline, seed by seed
    reach: Reach
    at_equal_time: float | None  # validation loss when the tuned baseline ended, mean over seeds
    diverged: int  # of the seeds


@dataclass(frozen=True)
class Row:
    """One entry's line in the table."""

    key: str
    label: str
    optimizer: str
    tuned: Track | None  # None: every trial of its tuning diverged
    drop_in: Track | None  # None: its learning rate is not in the baseline's unit
    lrs: tuple[float, ...]  # tried, ascending
    edge: str | None  # the best lr lies at this end of the grid, which was not to be extended any further
    works: tuple[float, float] | None  # the learning rates around the best that end within WORKS_WITHIN of it
    near_damping: NearDamping | None  # AdaFisher's alone
    step_time: StepTime | None  # optimizers taking turns
    state_bytes_per_parameter: float | None
    trials: int  # of the tuning
    diverged: int  # of these


def summarise(
    spec: Spec,
    results: Mapping[Trial, Result],
    choices: dict[str, Choice],
    tracks: Tracks,
    step_times: Mapping[str, StepTime],
    higher_is_better: bool = False,
) -> list[Row]:
    """A row per entry, in the spec's order. `higher_is_better`: of the metric that judges, if one does."""
    records = {trial: result.record for trial, result in results.items()}
    target = with_slack(choices[spec.baseline].loss)
    reference = [results[trial] for trial in tracks[TUNED][spec.baseline] if trial in results]

    def track(key: str, trials: list[Trial] | None, lr: float, knobs: Settings) -> Track | None:
        if trials is None or any(trial not in results for trial in trials):
            return None
        mine = [results[trial] for trial in trials]
        tested = [result.tested.metrics if result.tested else {} for result in mine]
        metrics = {name: _spread([one.get(name) for one in tested]) for one in tested for name in one}
        return Track(
            lr=lr,
            knobs=knobs,
            trials=tuple(trials),
            validation=_spread([result.record.validation_loss for result in mine]),
            test=_spread([result.tested.loss if result.tested else None for result in mine]),
            metrics=metrics,
            difference=_difference(spec, mine, reference, higher_is_better),
            reach=Reach(tuple(steps_to(target, result.record) for result in mine)),
            at_equal_time=_at_equal_time(spec, [r.record for r in mine], step_times.get(key), step_times),
            diverged=sum(result.record.diverged_at_step is not None for result in mine),
        )

    rows = []
    for key, entry in spec.entries.items():
        choice = choices.get(key)
        tuned = track(key, tracks[TUNED].get(key), choice.lr, choice.knobs) if choice else None
        dropped = tracks[DROP_IN].get(key)
        tried = list(choice.trials) if choice else [trial for trial in records if _is_tuning_of(spec, key, trial)]
        finished = [records[t] for t in tried if t in records and records[t].parameters and records[t].state_bytes]
        best = [records[trial] for trial in tuned.trials] if tuned else []
        rows.append(
            Row(
                key=key,
                label=entry.label,
                optimizer=entry.optimizer,
                tuned=tuned,
                drop_in=track(key, dropped, dropped[0].lr, dropped[0].options) if dropped else None,
                lrs=choice.lrs if choice else entry.lrs,
                edge=choice.edge if choice else None,
                works=works(spec, key, choice, records) if choice else None,
                near_damping=_near_damping([record.curvature for record in best if record.curvature]),
                step_time=step_times.get(key),
                state_bytes_per_parameter=finished[0].state_bytes / finished[0].parameters if finished else None,
                trials=len(tried),
                diverged=sum(records[trial].diverged_at_step is not None for trial in tried if trial in records),
            )
        )
    return rows


def with_slack(loss: float) -> float:
    """The target that follows from the tuned baseline's loss on the tuning seed."""
    return loss + TARGET_SLACK * abs(loss)


def steps_to(target: float, record: Record) -> int | None:
    """Steps until the first evaluation at or below the target."""
    return next((evaluation.step for evaluation in record.evaluations if evaluation.loss <= target), None)


def loss_at(step: float, record: Record) -> float | None:
    """The validation loss at a step between two evaluations, by a straight line; the last one beyond the end."""
    if record.validation_loss is None or not record.evaluations:
        return None
    before = None
    for evaluation in record.evaluations:
        if evaluation.step >= step:
            if before is None:
                return evaluation.loss
            share = (step - before.step) / (evaluation.step - before.step)
            return before.loss + share * (evaluation.loss - before.loss)
        before = evaluation
    return record.evaluations[-1].loss


def works(spec: Spec, key: str, choice: Choice, records: Mapping[Trial, Record]) -> tuple[float, float] | None:
    """The unbroken range of learning rates around the best whose loss, on the tuning seed, is within 5 % of its."""
    losses = [records[trial].validation_loss for trial in lr_trials(spec, key, choice.lrs)]
    if choice.lr not in choice.lrs:
        return None
    at = choice.lrs.index(choice.lr)
    best = losses[at]
    if best is None:
        return None

    def near(i: int) -> bool:
        loss = losses[i]
        return loss is not None and loss <= best + WORKS_WITHIN * abs(best)

    low = high = at
    while low > 0 and near(low - 1):
        low -= 1
    while high < len(losses) - 1 and near(high + 1):
        high += 1
    return choice.lrs[low], choice.lrs[high]


def _difference(spec: Spec, mine: list[Result], theirs: list[Result], higher_is_better: bool) -> Paired | None:
    """Mine minus theirs, with the sign turned where higher is better: below zero, mine is better."""

    def judged(result: Result) -> float | None:
        if result.tested is None:
            return None
        return result.tested.metrics[spec.judge] if spec.judge else result.tested.loss

    a, b = _spread([judged(result) for result in mine]), _spread([judged(result) for result in theirs])
    if a is None or b is None or len(a.values) != len(b.values):
        return None
    return paired(b.values, a.values) if higher_is_better else paired(a.values, b.values)


def _at_equal_time(
    spec: Spec, mine: list[Record], time: StepTime | None, step_times: Mapping[str, StepTime]
) -> float | None:
    if time is None:
        return None
    steps = spec.steps * step_times[spec.baseline].training_ms / time.training_ms
    spread = _spread([loss_at(steps, record) for record in mine])
    return None if spread is None else spread.mean


def _is_tuning_of(spec: Spec, key: str, trial: Trial) -> bool:
    return trial == spec.entries[key].trial(trial.lr, spec.tuning_seed)


def _near_damping(models: list[dict[str, LayerCurvature]]) -> NearDamping | None:
    if not models:
        return None
    layers = [list(model.values()) for model in models]
    near = [sum(one.near_damping * one.entries for one in model) for model in layers]
    return NearDamping(
        of_weights=fmean(n / sum(one.entries for one in model) for n, model in zip(near, layers, strict=True)),
        median_layer=fmean(median(one.near_damping for one in model) for model in layers),
    )


def _spread(values: list[float | None]) -> Spread | None:
    """None as soon as one value is missing."""
    present = [value for value in values if value is not None]
    return Spread(tuple(present)) if present and len(present) == len(values) else None
