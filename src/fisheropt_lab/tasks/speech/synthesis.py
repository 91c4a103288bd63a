"""The default speech: sentences of the standard library's documentation, synthesised and written like LibriSpeech.

It is synthetic, and said to be wherever it is shown. What a recogniser learns of it is how a formant synthesiser
pronounces English, at a few hundred times the speed of recording people.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.speech.espeak import SAMPLE_RATE, Samples, Voice, speak
from fisheropt_lab.tasks.speech.extra import module
from fisheropt_lab.tasks.speech.features import RATE
from fisheropt_lab.tasks.speech.librispeech import Speech, read_speech
from fisheropt_lab.tasks.speech.sentences import sentences
from fisheropt_lab.tasks.text.python_docs import split_of

WORTH_PROCESSES = 500  # utterances

VERSION = 1  # of this file's way of making speech: another one makes another folder

VOICES: dict[str, Voice] = {  # by speaker number, as in LibriSpeech
    "101": Voice("en-us", "m3", 50, 140),
    "102": Voice("en-us", "f2", 55, 145),
    "103": Voice("en", "m1", 45, 135),
    "104": Voice("en", "f4", 60, 150),
    "105": Voice("en-us", "m7", 35, 130),
    "106": Voice("en-us", "f5", 65, 145),
}
NEW_VOICES: dict[str, Voice] = {  # heard in the test only
    "201": Voice("en-us", "m5", 40, 145),
    "202": Voice("en", "f1", 50, 135),
}


@dataclass(frozen=True)
class Line:
    """What one speaker says."""

    part: str
    speaker: str
    text: str

    def seed(self) -> int:
        """Of the noise in it; a function of what is said by whom, so that it survives changes elsewhere."""
        return int.from_bytes(hashlib.sha256(f"{self.speaker} {self.text}".encode()).digest()[:4]) >> 1


def script(limit: int | None = None) -> list[Line]:
    """Who says what. A sentence is in one split only, chosen by a hash of it; ``limit``: sentences in all.

    Training sentences are said by two voices, those of validation and test by one, and the test sentences once more by
    a voice that is not in the training.
    """
    known, new = list(VOICES), list(NEW_VOICES)
    lines = []
    for text in _spread(sentences(), limit):
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[8:12])
        split, first = split_of(text), known[number % len(known)]
        if split == "train":
            second = known[(number + 1 + number // 7 % (len(known) - 1)) % len(known)]
            lines += [Line("train-synthetic", first, text), Line("train-synthetic", second, text)]
        elif split == "validation":
            lines.append(Line("dev-synthetic", first, text))
        else:
            lines.append(Line("test-sentences", first, text))
            lines.append(Line("test-voices", new[number % len(new)], text))
    return lines


def _spread(texts: tuple[str, ...], limit: int | None) -> list[str]:
    """``limit`` of them, from everywhere in the alphabet."""
    if limit is None or limit >= len(texts):
        return list(texts)
    return [texts[i * len(texts) // limit] for i in range(limit)]


def synthetic_speech(limit: int | None = None) -> Speech:
    """The speech, made at the first call on a machine (about a minute) and found in the cache folder from then on."""
    lines = script(limit)
    folder = cache_folder() / f"speech-{_fingerprint(lines)}"
    if not folder.exists():
        _write(lines, folder)
    return read_speech(
        folder,
        source="synthetic speech: espeak-ng reads sentences of CPython's documentation",
        how_split="by sentence, about 90/5/5, by a hash of it; the test also by two voices that training does not have",
    )


def cache_folder() -> Path:
    """Where the lab keeps what it can make again: FISHEROPT_CACHE, or fisheropt in the user's cache folder."""
    if chosen := os.environ.get("FISHEROPT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fisheropt"


def _fingerprint(lines: list[Line]) -> str:
    voices = {name: asdict(voice) for name, voice in (VOICES | NEW_VOICES).items()}
    everything = json.dumps([VERSION, RATE, voices, [asdict(line) for line in lines]])
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _write(lines: list[Line], folder: Path) -> None:
    """All of it, or nothing: a folder that exists is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        chapters = list(_chapters(lines))
        if len(lines) < WORTH_PROCESSES:
            for chapter in chapters:
                _write_chapter(unfinished, chapter)
        else:
            with ProcessPoolExecutor(min(len(chapters), os.cpu_count() or 1), get_context("spawn")) as pool:
                list(pool.map(_write_chapter, [unfinished] * len(chapters), chapters))
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _chapters(lines: list[Line]) -> Iterator[list[Line]]:
    """The lines of one speaker in one part."""
    by_speaker: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        by_speaker[line.part, line.speaker].append(line)
    yield from by_speaker.values()


def _write_chapter(root: Path, lines: list[Line]) -> None:
    soundfile = module("soundfile")
    first = lines[0]
    folder = root / first.part / first.speaker / "1"
    folder.mkdir(parents=True)
    transcript = []
    for number, line in enumerate(lines):
        name = f"{line.speaker}-1-{number:04d}"
        samples = speak(line.text, (VOICES | NEW_VOICES)[line.speaker], line.seed())
        soundfile.write(folder / f"{name}.flac", resampled(samples), RATE, subtype="PCM_16")
        transcript.append(f"{name} {line.text.upper()}\n")
    (folder / f"{first.speaker}-1.trans.txt").write_text("".join(transcript), encoding="utf-8")


def resampled(samples: Samples) -> Samples:
    """From espeak-ng's sample rate to LibriSpeech's, filtered against aliases, saturating."""
    from scipy.signal import resample_poly

    if not len(samples):
        raise LabError("espeak-ng said nothing; reinstall espeakng-loader")
    divisor = np.gcd(RATE, SAMPLE_RATE)
    wide = resample_poly(samples.astype(np.float64), RATE // divisor, SAMPLE_RATE // divisor)
    return np.clip(np.rint(wide), -32768, 32767).astype(np.int16)
