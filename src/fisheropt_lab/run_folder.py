"""The folder of one study: which file means what.

run.json                the spec, the command, the machine: written first, compared on --resume
sweep.sqlite            every finished training (`fisheropt_lab.sweeps.store`)
checkpoints/<trial>.pt  the way back into trainings that are running
timing.json             step times, and when everything was done
results.json, table.md, curves.png, report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import make_writable_folder, read_json, write_json
from fisheropt_lab.spec import Spec
from fisheropt_lab.sweeps.store import Store


class RunFolder:
    """Names of files, and reading and writing of the small ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "run.json"
        self.store = Store(root / "sweep.sqlite")
        self.checkpoints = root / "checkpoints"
        self.timing = root / "timing.json"
        self.results = root / "results.json"
        self.table = root / "table.md"
        self.curves = root / "curves.png"
        self.report = root / "report.html"

    def start(self, manifest: dict[str, Any], resume: bool) -> None:
        """Claim a new folder, or make sure that the one to resume holds the same study."""
        if self.manifest.exists():
            if not resume:
                raise LabError(f"{self.root} already holds a run; add --resume to continue it, or name another --out")
            self._require_same(read_json(self.manifest), manifest)
        elif resume:
            raise LabError(f"nothing to resume in {self.root}: it holds no run")
        for folder in (self.root, self.checkpoints):
            make_writable_folder(folder)
        self.store.create()
        if not self.manifest.exists():
            write_json(self.manifest, manifest)
            self.store.describe("spec", manifest["spec"])

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
        """What the study is.

        Raises:
            LabError: the folder holds no study.
        """
        if not self.manifest.exists():
            raise LabError(f"{self.root} holds no run")
        return Spec.from_json(read_json(self.manifest)["spec"])
