"""Files that are either the old version or the new one, never half of each: what Ctrl-C and a full disk need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from fisheropt_lab.errors import LabError

PARTIAL = ".partial"  # suffix of a file that is being written


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` changes in one move."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON: NaN and inf are refused here, a diverged number is None."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def save_tensors(path: Path, value: Any) -> None:
    """torch.save in one move."""
    partial = path.with_name(path.name + PARTIAL)
    torch.save(value, partial)
    os.replace(partial, path)


def load_tensors(path: Path) -> Any:
    """torch.load onto the CPU, of tensors and plain values only."""
    return torch.load(path, map_location="cpu", weights_only=True)


def make_writable_folder(folder: Path) -> None:
    """Create the folder and prove that a file can be made in it, before an hour of training depends on that."""
    probe = folder / ("probe" + PARTIAL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LabError(f"cannot write to the folder {folder}: {error.strerror or error}") from None


def default_folder(name: str, resume: bool) -> Path:
    """runs/NAME, runs/NAME-2, ...: the latest that exists to resume, else the first that does not."""
    runs = Path("runs")
    number, folder = 1, runs / name
    while folder.exists():
        latest, number = folder, number + 1
        folder = runs / f"{name}-{number}"
    if not resume:
        return folder
    if number == 1:
        raise LabError(f"nothing to resume: {folder} does not exist")
    return latest
