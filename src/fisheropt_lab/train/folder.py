"""The folder of one training run: which file means what.

train.json        the plan, the command, the machine: written first, compared on --resume
metrics.jsonl     a line per step: loss, learning rate, norm of the gradient, seconds, and where due validation loss
checkpoints/      step-N: complete ones, the newest last
monitor.jsonl     with --monitor: what steps did to the parameters, a line per so many of them
result.json       the end: losses, sizes, times
curves.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import make_writable_folder, read_json, write_json, write_text
from fisheropt_lab.train.plan import Plan

Line = dict[str, Any]  # of metrics.jsonl


class TrainFolder:
    """Names of files, and reading and writing of the small ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "train.json"
        self.metrics = root / "metrics.jsonl"
        self.monitor = root / "monitor.jsonl"
        self.checkpoints = root / "checkpoints"
        self.result = root / "result.json"
        self.curves = root / "curves.png"

    def start(self, manifest: dict[str, Any], plan: Plan, resume: bool) -> None:
        """Claim a new folder, or make sure that the one to resume holds the same run."""
        if self.manifest.exists():
            if not resume:
                raise LabError(f"{self.root} already holds a run; add --resume to continue it, or name another --out")
            differences = plan.differences(read_json(self.manifest)["plan"])
            if differences:
                raise LabError(
                    f"{self.root} holds a run under another plan ({'; '.join(differences)}); "
                    "give the same options to resume it, or start a new one elsewhere"
                )
        make_writable_folder(self.root)
        make_writable_folder(self.checkpoints)
        if not self.manifest.exists():
            write_json(self.manifest, manifest)

    def lines(self) -> list[Line]:
        """The metrics so far; a last line that a killed process did not finish is left out."""
        return _lines(self.metrics)

    def rewind(self, step: int) -> None:
        """Drop the metrics of what came after the checkpoint that is gone on from."""
        for path in (self.metrics, self.monitor):
            if path is self.metrics or path.exists():
                kept = [line for line in _lines(path) if line["step"] <= step]
                write_text(path, "".join(map(_text, kept)))

    def append(self, line: Line) -> None:
        """Add a line, visible to readers at once."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(_text(line))


def _lines(path: Path) -> list[Line]:
    found: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
