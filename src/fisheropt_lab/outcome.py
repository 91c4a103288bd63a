"""Everything a run folder knows, in one value: what results.json holds and what table, plot and report are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fisheropt_lab.files import read_json
from fisheropt_lab.record import Record
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.selection import best_lrs
from fisheropt_lab.spec import Spec
from fisheropt_lab.summary import Row, Spread, summarise
from fisheropt_lab.tasks import TASKS, Metric, Unit
from fisheropt_lab.timing import StepTime
from fisheropt_lab.verdict import Finding, verdict


@dataclass(frozen=True)
class Outcome:
    """A finished comparison."""

    spec: Spec
    manifest: dict[str, Any]  # run.json
    timing: dict[str, Any]  # timing.json
    records: list[Record]
    test_losses: dict[str, float]  # by trial id
    test_metrics: dict[str, dict[str, float]]  # by trial id
    rows: list[Row]

    @property
    def units(self) -> tuple[Unit, ...]:
        return TASKS[self.spec.task].units

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return TASKS[self.spec.task].metrics

    @property
    def verdict(self) -> list[Finding]:
        return verdict(self.spec, self.rows, self.units[0].name)

    def to_json(self) -> dict[str, Any]:
        """What results.json holds: the table and all it is computed from."""
        return {
            "verdict": [str(finding) for finding in self.verdict],
            "summary": [self._row_json(row) for row in self.rows],
            **self.manifest,
            **self.timing,
            "test_losses": self.test_losses,
            "test_metrics": self.test_metrics,
            "trials": [record.to_json() for record in self.records],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        return asdict(row) | {
            "validation": self._spread_json(row.validation),
            "test": self._spread_json(row.test),
            "metrics": {name: spread and _numbers(spread, 1.0) for name, spread in row.metrics.items()},
            "steps_to_baseline": row.reach and {"median": row.reach.median, "per_seed": list(row.reach.steps)},
        }

    def _spread_json(self, spread: Spread | None) -> dict[str, Any] | None:
        if spread is None:
            return None
        return {unit.name: _numbers(spread, unit.per_loss) for unit in self.units}


def _numbers(spread: Spread, factor: float) -> dict[str, Any]:
    return {
        "mean": spread.mean * factor,
        "std": None if spread.std is None else spread.std * factor,
        "min": spread.low * factor,
        "max": spread.high * factor,
        "per_seed": [value * factor for value in spread.values],
    }


def load_outcome(folder: RunFolder) -> Outcome:
    """Aggregate the files of a finished run."""
    manifest, timing, spec = read_json(folder.manifest), read_json(folder.timing), folder.spec()
    search = folder.records(spec.search_trials())
    repeats = folder.records(spec.repeat_trials(best_lrs(spec, search)))
    records = search + repeats
    test_losses = {record.trial.id: loss for record in records if (loss := folder.test_loss(record.trial)) is not None}
    step_times = {name: StepTime.from_json(value) for name, value in timing["step_times"].items()}
    test_metrics = {record.trial.id: folder.test_metrics(record.trial) for record in records}
    test_metrics = {trial: metrics for trial, metrics in test_metrics.items() if metrics}
    rows = summarise(spec, records, test_losses, step_times, test_metrics)
    return Outcome(spec, manifest, timing, records, test_losses, test_metrics, rows)
