"""A folder of complete checkpoints.

A checkpoint is written into step-N.partial: every process its shards, then the manifest; all of it is forced to disk
before the folder is renamed to step-N. A folder of that name is therefore complete, and whatever else a killed process
left behind is never looked at. One that is deleted is renamed back first.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import PARTIAL
from fisheropt_lab.train.manifest import NAME, FileDigest, Manifest, digest_of, read_manifest, require_intact
from fisheropt_lab.train.world import World


class Checkpoints:
    """The checkpoints of one run; all processes call the same methods at the same time."""

    def __init__(self, root: Path, keep: int, world: World) -> None:
        self.root = root
        self.keep = keep
        self.world = world

    def complete(self) -> list[Path]:
        """The folders of complete checkpoints, oldest first."""
        found = self.root.glob("step-*") if self.root.exists() else ()
        return sorted(folder for folder in found if re.fullmatch(r"step-\d+", folder.name))

    def save(self, manifest: Manifest, write: Callable[[Path], set[str]]) -> Path:
        """Make a checkpoint of what ``write`` writes.

        Args:
            manifest: what it is; the files are filled in here.
            write: writes into the empty folder it is given, on all processes together, and returns the names of what
                all of them wrote.
        """
        folder = self.root / f"step-{manifest.step:08d}"
        partial = folder.with_name(folder.name + PARTIAL)
        self.world.once(lambda: _fresh(partial))
        written = sorted(write(partial))
        digests: dict[str, FileDigest] = {}
        for part in self.world.everywhere(lambda: self._digests(partial, written)):
            digests |= part
        self.world.once(lambda: _publish(partial, folder, replace(manifest, files=digests)))
        self.world.once(self._forget_old)
        return folder

    def newest(self, check: Callable[[Path, Manifest], None]) -> tuple[Path, Manifest] | None:
        """The newest complete checkpoint, every byte of it checked; None if there is none.

        Args:
            check: raises LabError if it is not the one that is wanted.
        """

        def look() -> tuple[Path, Manifest] | None:
            folders = self.complete()
            if not folders:
                return None
            manifest = read_manifest(folders[-1])
            check(folders[-1], manifest)
            return folders[-1], manifest

        found = self.world.once(look)
        if found is not None:
            self.world.everywhere(lambda: self._require_intact(*found))
        return found

    def _digests(self, folder: Path, written: list[str]) -> dict[str, FileDigest]:
        """This process's share of reading through what was written."""
        mine = written[self.world.rank :: self.world.size]
        for name in mine:
            if not (folder / name).exists():
                raise LabError(
                    f"{folder / name} was written by another process and cannot be seen by process {self.world.rank}; "
                    "--out must be a folder that all machines share"
                )
        return {name: digest_of(folder / name) for name in mine}

    def _require_intact(self, folder: Path, manifest: Manifest) -> None:
        """This process's share of checking the files."""
        for name in sorted(manifest.files)[self.world.rank :: self.world.size]:
            require_intact(folder, name, manifest.files[name])

    def _forget_old(self) -> None:
        """Delete all but the newest, and what killed processes left unfinished."""
        for folder in self.complete()[: -self.keep]:
            folder.rename(folder.with_name(folder.name + PARTIAL))
        for folder in self.root.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(folder)


def _fresh(folder: Path) -> None:
    """An empty folder, whatever was there."""
    if folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise LabError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def _publish(partial: Path, folder: Path, manifest: Manifest) -> None:
    """Write the manifest, force everything to disk, and give the folder its name."""
    path = partial / NAME
    path.write_text(manifest.to_text(), encoding="utf-8")
    for name in [*manifest.files, NAME]:
        _force_to_disk(partial / name)
    _force_to_disk(partial)
    partial.rename(folder)
    _force_to_disk(folder.parent)


def _force_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
