"""checkpoint.json: what a checkpoint says about itself, and every reason not to load it.

It is written last, into a folder that gets its name afterwards. It holds the size and SHA-256 of every other file and
the SHA-256 of itself, so that nothing damaged is unpickled, let alone trained on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import versions
from fisheropt_lab.train.plan import Plan

NAME = "checkpoint.json"
FORMAT = 1  # raised by every change after which older versions of this file, or of what lies beside it, read wrongly


@dataclass(frozen=True)
class FileDigest:
    """A file as it was when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the other files are."""

    step: int  # updates done
    seconds: float  # of training, evaluations and checkpoints left out
    plan: dict[str, Any]
    parameters: dict[str, list[int]]  # name -> shape
    processes: int  # that wrote it
    parallel: str
    files: dict[str, FileDigest]

    def to_text(self) -> str:
        """Strict JSON that names its format and ends with its own SHA-256."""
        content = {"format": FORMAT, "written_by": versions(), **asdict(self)}
        return json.dumps(content | {"sha256": _digest_of(content)}, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete checkpoint; LabError if it is damaged or of another format."""
    path = folder / NAME
    try:
        content = json.loads(path.read_bytes())
        found, writer = content.pop("format"), content.pop("written_by")
        told = content.pop("sha256") if found == FORMAT else None
    except FileNotFoundError:
        raise LabError(f"{path} is missing; {_remedy(folder)}") from None
    except (ValueError, KeyError, AttributeError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise LabError(f"{path} is damaged: {error}; {_remedy(folder)}") from None
    if found != FORMAT:
        theirs = writer.get("fisheropt", "an unknown version") if isinstance(writer, dict) else "an unknown version"
        raise LabError(
            f"{path} has format {found!r}, written by fisheropt {theirs}, and this version reads format {FORMAT}; "
            f"go on with fisheropt {theirs}, or start a new run"
        )
    if told != _digest_of({"format": found, "written_by": writer, **content}):
        raise LabError(f"{path} is damaged: its SHA-256 is not the one it ends with; {_remedy(folder)}")
    files = {name: FileDigest(**digest) for name, digest in content["files"].items()}
    return Manifest(**(content | {"files": files}))


def require_same_run(folder: Path, manifest: Manifest, plan: Plan, parameters: dict[str, list[int]]) -> None:
    """Raise LabError unless the checkpoint is of this optimizer, this model and this plan."""
    theirs = manifest.plan.get("optimizer")
    if theirs != plan.optimizer:
        raise LabError(
            f"{folder} is a checkpoint of {theirs}, not of {plan.optimizer}: the state of one means nothing to the "
            f"other; go on with --optimizer {theirs}, or start a new run"
        )
    if manifest.parameters != parameters:
        raise LabError(
            f"{folder} is a checkpoint of another model: {_first_difference(manifest.parameters, parameters)}; "
            "go on with the model it was written with (see --size), or start a new run"
        )
    differences = plan.differences(manifest.plan)
    if differences:
        raise LabError(
            f"{folder} belongs to a run under another plan, whose loss curve this one would not continue "
            f"({'; '.join(differences)}); give the same options, or start a new run"
        )


def digest_of(path: Path) -> FileDigest:
    """Read a file through."""
    with path.open("rb") as file:
        return FileDigest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def require_intact(folder: Path, name: str, expected: FileDigest) -> None:
    """Raise LabError unless the file is what was written."""
    path = folder / name
    if not path.exists():
        raise LabError(f"{path} is missing; {_remedy(folder)}")
    size = path.stat().st_size
    if size != expected.bytes:
        raise LabError(f"{path} has {size} bytes, and {expected.bytes} were written; {_remedy(folder)}")
    if digest_of(path) != expected:
        raise LabError(f"{path} is damaged: its SHA-256 is not that of what was written; {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} to go on from the one before it, if there is one"


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_difference(theirs: dict[str, list[int]], ours: dict[str, list[int]]) -> str:
    name = next(name for name in [*ours, *theirs] if theirs.get(name) != ours.get(name))
    if name not in theirs:
        return f"it has no {name}"
    if name not in ours:
        return f"it has {name}, which this model does not"
    return f"{name} has shape {tuple(theirs[name])} there and {tuple(ours[name])} here"
