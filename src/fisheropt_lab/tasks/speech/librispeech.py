"""Speech in LibriSpeech's layout, which the synthesised speech is written in too:

    <part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac
    <part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt     lines of "<speaker>-<chapter>-<number> THE WORDS"

Parts whose names begin with "train", "dev" and "test" are the training, validation and test splits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.speech.extra import module

SPLITS = {"train": "train", "validation": "dev", "test": "test"}  # split -> how the names of its parts begin


@dataclass(frozen=True)
class Utterance:
    """A sentence that somebody said."""

    audio: Path
    text: str  # in lower case
    speaker: str
    part: str


@dataclass(frozen=True)
class Speech:
    """Utterances of three splits that share none, and where they are from."""

    source: str  # a phrase for the report
    how_split: str  # a phrase for the report
    utterances: dict[str, tuple[Utterance, ...]]  # by split

    def sha256(self) -> str:
        """Of the names and transcripts of all utterances, by split. The audio is taken to be what its name says."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for utterance in self.utterances[split]:
                sha.update(f"{split}\0{utterance.part}\0{utterance.audio.name}\0{utterance.text}\n".encode())
        return sha.hexdigest()


def read_speech(root: Path, source: str, how_split: str) -> Speech:
    """The utterances below a folder.

    Raises:
        LabError: a split has none, a transcript cannot be read, or the audio it speaks of is missing.
    """
    if not root.is_dir():
        raise LabError(f"no such folder: {root}")
    utterances: dict[str, tuple[Utterance, ...]] = {}
    for split, beginning in SPLITS.items():
        parts = sorted(p for p in root.iterdir() if p.is_dir() and p.name.startswith(beginning))
        transcripts = [(path, part) for part in parts for path in sorted(part.rglob("*.trans.txt"))]
        found = [u for path, part in transcripts for u in _read(path, part)]
        if not found:
            raise LabError(
                f"{root} has no {split} utterances; LibriSpeech's layout is "
                f"{beginning}-NAME/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with .flac files beside it"
            )
        utterances[split] = tuple(found)
    return Speech(source, how_split, utterances)


def _read(transcript: Path, part: Path) -> list[Utterance]:
    found = []
    try:
        lines = transcript.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"cannot read {transcript}: {error}") from None
    for line in lines:
        name, _, words = line.partition(" ")
        audio = transcript.with_name(f"{name}.flac")
        if not words.strip() or not audio.exists():
            raise LabError(f"{transcript} has the line {line!r}, but {audio.name} or its words are missing")
        found.append(Utterance(audio, " ".join(words.lower().split()), name.split("-")[0], part.name))
    return found


def load_audio(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """The samples of a file with one channel, in [-1, 1]: (samples,).

    Raises:
        LabError: it cannot be read, or has another sample rate or more channels.
    """
    soundfile = module("soundfile")
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise LabError(f"cannot read {path}: {error}") from None
    if samples.ndim != 1 or rate != sample_rate:
        raise LabError(f"{path} has {samples.ndim} axes at {rate} samples per second; it must be mono at {sample_rate}")
    return samples  # type: ignore[no-any-return]
