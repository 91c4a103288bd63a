"""Everything a run folder knows, in one value: what results.json holds and what table, plot and report are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import read_json
from fisheropt_lab.intervals import Paired
from fisheropt_lab.record import Record
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.summary import Row, Spread, Track, summarise
from fisheropt_lab.sweeps.job import Result
from fisheropt_lab.tasks import TASKS, Metric, Unit
from fisheropt_lab.timing import StepTime
from fisheropt_lab.tracks import Tracks, reported
from fisheropt_lab.tuning import Choice, tune
from fisheropt_lab.verdict import Finding, Judge, verdict


@dataclass(frozen=True)
class Outcome:
    """A finished study."""

    spec: Spec
    manifest: dict[str, Any]  # run.json
    timing: dict[str, Any]  # timing.json
    results: dict[Trial, Result]
    choices: dict[str, Choice]
    tracks: Tracks
    frozen: dict[str, Any]  # what was settled before the reported seeds were trained
    rows: list[Row]

    @property
    def units(self) -> tuple[Unit, ...]:
        return TASKS[self.spec.task].units

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return TASKS[self.spec.task].metrics

    @property
    def judge(self) -> Judge:
        return judge_of(self.spec)

    @property
    def verdict(self) -> list[Finding]:
        return verdict(self.spec, self.rows, self.judge)

    def records(self, trials: tuple[Trial, ...] | list[Trial]) -> list[Record]:
        """What is known of these trials, of those that are finished."""
        return [self.results[trial].record for trial in trials if trial in self.results]

    def to_json(self) -> dict[str, Any]:
        """What results.json holds: the table and what it is computed from. The curves are in the store."""
        return {
            "verdict": [str(finding) for finding in self.verdict],
            "summary": [self._row_json(row) for row in self.rows],
            **self.manifest,
            **self.timing,
            "frozen": self.frozen,
            "trials": [_trial_json(trial, result) for trial, result in self.results.items()],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        return {
            "key": row.key,
            "label": row.label,
            "optimizer": row.optimizer,
            "tuned": self._track_json(row.tuned),
            "drop_in": self._track_json(row.drop_in),
            "lrs": list(row.lrs),
            "edge": row.edge,
            "works": row.works and list(row.works),
            "near_damping": row.near_damping and asdict(row.near_damping),
            "step_time": row.step_time and asdict(row.step_time),
            "state_bytes_per_parameter": row.state_bytes_per_parameter,
            "tuning_trials": row.trials,
            "tuning_diverged": row.diverged,
        }

    def _track_json(self, track: Track | None) -> dict[str, Any] | None:
        if track is None:
            return None
        return {
            "lr": track.lr,
            "knobs": dict(track.knobs),
            "validation": self._loss_json(track.validation),
            "test": self._loss_json(track.test),
            "metrics": {name: spread and _numbers(spread, 1.0) for name, spread in track.metrics.items()},
            "difference": track.difference and difference_json(track.difference),
            "steps_to_target": {"median": track.reach.median, "per_seed": list(track.reach.steps)},
            "validation_at_equal_time": track.at_equal_time,
            "diverged": track.diverged,
        }

    def _loss_json(self, spread: Spread | None) -> dict[str, Any] | None:
        if spread is None:
            return None
        return {unit.name: _numbers(spread, unit.per_loss) for unit in self.units}


def difference_json(difference: Paired) -> dict[str, Any]:
    """A paired difference, better below zero, in the unit of the loss or of the metric."""
    several = difference.seeds > 1
    return {
        "mean": difference.mean,
        "interval_95": list(difference.interval) if several else None,
        "smallest_shown": difference.smallest_shown if several else None,
        "seen": difference.seen,
        "per_seed": list(difference.differences),
    }


def judge_of(spec: Spec) -> Judge:
    """What the entries of a study are held against one another by."""
    kind = TASKS[spec.task]
    for metric in kind.metrics:
        if metric.name == spec.judge:
            return Judge(metric.name, metric.unit, metric.factor, metric.digits, metric.higher_is_better)
    return Judge("test loss", kind.units[0].name)


def load_outcome(folder: RunFolder) -> Outcome:
    """Aggregate the files of a run that is finished at least as far as its tuning.

    Raises:
        LabError: it is not.
    """
    manifest, spec = read_json(folder.manifest) if folder.manifest.exists() else {}, folder.spec()
    results = folder.store.results()
    tuning = tune(spec, {trial: result.record for trial, result in results.items()})
    if tuning.due or spec.baseline not in tuning.choices:
        raise LabError(f"{folder.root} holds no finished run: its tuning has not ended; add --resume to its command")
    tracks = reported(spec, tuning.choices)
    timing = read_json(folder.timing) if folder.timing.exists() else {"step_times": {}, "finished": "not yet"}
    step_times = {name: StepTime.from_json(value) for name, value in timing["step_times"].items()}
    rows = summarise(spec, results, tuning.choices, tracks, step_times, judge_of(spec).higher_is_better)
    frozen = folder.store.about("frozen") or {}
    return Outcome(spec, manifest, timing, results, tuning.choices, tracks, frozen, rows)


def _numbers(spread: Spread, factor: float) -> dict[str, Any]:
    return {
        "mean": spread.mean * factor,
        "std": None if spread.std is None else spread.std * factor,
        "min": spread.low * factor,
        "max": spread.high * factor,
        "per_seed": [value * factor for value in spread.values],
    }


def _trial_json(trial: Trial, result: Result) -> dict[str, Any]:
    record = result.record
    return {
        "id": trial.id,
        "optimizer": trial.optimizer,
        "lr": trial.lr,
        "seed": trial.seed,
        "options": dict(trial.options + trial.settings),
        "validation": record.validation_loss,
        "test": result.tested.loss if result.tested else None,
        "diverged_at_step": record.diverged_at_step,
        "seconds": round(record.seconds, 2),
        "backends": record.backends,
        "evaluations": [[one.step, one.loss] for one in record.evaluations],
    }
