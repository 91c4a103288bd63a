"""The user's own text: one UTF-8 file, or a folder of them, of any size."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text.bytetext import ByteText, FileSpan
from fisheropt_lab.tasks.text.corpus import TRAIN, VALIDATION, Corpus

TEXT_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex"}
CHUNK = 1 << 20  # bytes read at a time while checking


def user_text(path: Path) -> Corpus:
    """The files of `path`, read as one long text: the first 90 % train, the next 5 % validate, the last 5 % test."""
    files = text_files(path)
    sha = hashlib.sha256()
    sizes = [check_utf8(file, sha) for file in files]
    total = sum(sizes)
    if total == 0:
        raise LabError(f"{path} holds no text: it is empty")
    cuts = (0, int(total * TRAIN), int(total * (TRAIN + VALIDATION)), total)
    train, validation, test = (_between(files, sizes, cuts[i], cuts[i + 1]) for i in range(3))
    return Corpus(
        source=f"{path.name} ({len(files)} file{'s' if len(files) > 1 else ''})",
        how_split="contiguous, 90/5/5",
        sha256=sha.hexdigest(),
        train=train,
        validation=validation,
        test=test,
    )


def text_files(path: Path) -> list[Path]:
    """The file itself, or every text file below the folder, sorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LabError(f"no such file or folder: {path}")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise LabError(f"no text files in {path} (looked for {', '.join(sorted(TEXT_SUFFIXES))})")
    return files


def check_utf8(path: Path, sha: hashlib._Hash) -> int:
    """Read a file once, in pieces: feed it to the hash, make sure it is UTF-8, return its size in bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = 0
    try:
        with path.open("rb") as stream:
            while True:
                chunk = stream.read(CHUNK)
                held_back = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
                decoder.decode(chunk, final=not chunk)
                if not chunk:
                    return size
                sha.update(chunk)
                size += len(chunk)
    except UnicodeDecodeError as error:
        raise LabError(f"{path} is not UTF-8 text: bad byte at offset {size - held_back + error.start}") from None
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror or error}") from None


def _between(files: list[Path], sizes: list[int], start: int, stop: int) -> ByteText:
    """Bytes start..stop of the files taken as one text."""
    spans = []
    offset = 0  # where the file begins in the long text
    for file, size in zip(files, sizes, strict=True):
        first, last = max(start - offset, 0), min(stop - offset, size)
        if first < last:
            spans.append(FileSpan(file, first, last))
        offset += size
    return ByteText(spans)
