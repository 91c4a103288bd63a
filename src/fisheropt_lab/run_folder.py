"""The folder of one comparison: which file means what.

run.json                the spec, the command, the machine: written first, compared on --resume
trials/<trial>.json     one finished trial each
trials/<trial>.pt       the way back into the trial that is running
weights/<trial>.pt      trained models that may still be needed for the test split
tests/<trial>.json      the test loss of a chosen trial, and the task's metrics
timing.json             step times, and when everything was done
results.json, table.md, curves.png, report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import make_writable_folder, read_json, write_json
from fisheropt_lab.record import Record
from fisheropt_lab.spec import Spec, Trial


class RunFolder:
    """Names of files, and reading and writing of the small ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "run.json"
        self.timing = root / "timing.json"
        self.results = root / "results.json"
        self.table = root / "table.md"
        self.curves = root / "curves.png"
        self.report = root / "report.html"

    def trial(self, trial: Trial) -> Path:
        return self.root / "trials" / f"{trial.id}.json"

    def checkpoint(self, trial: Trial) -> Path:
        return self.root / "trials" / f"{trial.id}.pt"

    def weights(self, trial: Trial) -> Path:
        return self.root / "weights" / f"{trial.id}.pt"

    def test(self, trial: Trial) -> Path:
        return self.root / "tests" / f"{trial.id}.json"

    def start(self, manifest: dict[str, Any], resume: bool) -> None:
        """Claim a new folder, or make sure that the one to resume holds the same comparison."""
        if self.manifest.exists():
            if not resume:
                raise LabError(f"{self.root} already holds a run; add --resume to continue it, or name another --out")
            self._require_same(read_json(self.manifest), manifest)
        elif resume:
            raise LabError(f"nothing to resume in {self.root}: it holds no run")
        for folder in (self.root, self.root / "trials", self.root / "weights", self.root / "tests"):
            make_writable_folder(folder)
        if not self.manifest.exists():
            write_json(self.manifest, manifest)

    def _require_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        differences = [
            f"{key} was {before[key]}, now {after.get(key)}"
            for before, after in (
                (old["spec"], new["spec"]),
                (old["environment"]["versions"], new["environment"]["versions"]),
            )
            for key in before
            if before[key] != after.get(key)
        ]
        if differences:
            raise LabError(f"{self.root} holds a different run ({'; '.join(differences)}); start a new one elsewhere")

    def spec(self) -> Spec:
        return Spec.from_json(read_json(self.manifest)["spec"])

    def record(self, trial: Trial) -> Record | None:
        """The finished trial, or None."""
        path = self.trial(trial)
        return Record.from_json(read_json(path)) if path.exists() else None

    def records(self, trials: list[Trial]) -> list[Record]:
        """Those of the trials that are finished."""
        return [record for record in map(self.record, trials) if record is not None]

    def test_loss(self, trial: Trial) -> float | None:
        """What the test split said, or None if it was not asked."""
        path = self.test(trial)
        return read_json(path)["test_loss"] if path.exists() else None

    def test_metrics(self, trial: Trial) -> dict[str, float]:
        """The task's metrics on the test split, by name."""
        path = self.test(trial)
        return read_json(path).get("metrics", {}) if path.exists() else {}
