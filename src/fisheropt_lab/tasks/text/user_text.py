"""The user's own text: a file, or a folder of them, of any size."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text.corpus import TRAIN, VALIDATION, Corpus
from fisheropt_lab.tasks.text.reading import COMPRESSED, JSON_LINES, PROSE, is_plain, is_text
from fisheropt_lab.tasks.text.spool import spool
from fisheropt_lab.tasks.text.tokens import FileSpan, TokenText

CHUNK = 1 << 20  # bytes read at a time while checking


def user_text(path: Path, tokenizer: Path | None = None) -> Corpus:
    """The files of `path`, read as one long text: the first 90 % train, the next 5 % validate, the last 5 % test.

    Plain files are read where they lie; others are written out once (`fisheropt_lab.tasks.text.spool`).
    """
    files = text_files(path)
    if tokenizer is None and all(map(is_plain, files)):
        sha = hashlib.sha256()
        sizes = [check_utf8(file, sha) for file in files]
        return _corpus(path, files, sizes, files, "uint8", sha.hexdigest())
    if tokenizer is not None and not tokenizer.is_file():
        raise LabError(f"no such tokenizer file: {tokenizer}")
    flat = spool(files, tokenizer)
    corpus = _corpus(path, [flat.path], [flat.tokens], files, flat.dtype, flat.sha256)
    return replace(corpus, vocabulary=flat.vocabulary, bytes_per_token=flat.text_bytes / flat.tokens)


def _corpus(
    path: Path, pieces: Sequence[Path], sizes: Sequence[int], files: Sequence[Path], dtype: str, sha256: str
) -> Corpus:
    total = sum(sizes)
    if total == 0:
        raise LabError(f"{path} holds no text: it is empty")
    cuts = (0, int(total * TRAIN), int(total * (TRAIN + VALIDATION)), total)
    train, validation, test = (_between(pieces, sizes, dtype, cuts[i], cuts[i + 1]) for i in range(3))
    return Corpus(
        source=f"{path.name} ({len(files)} file{'s' if len(files) > 1 else ''})",
        how_split="contiguous, 90/5/5",
        sha256=sha256,
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
    files = sorted(p for p in path.rglob("*") if is_text(p) and p.is_file())
    if not files:
        known = ", ".join(sorted(PROSE + JSON_LINES))
        raise LabError(f"no text files in {path} (looked for {known}, also with {' or '.join(COMPRESSED)} after it)")
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


def _between(pieces: Sequence[Path], sizes: Sequence[int], dtype: str, start: int, stop: int) -> TokenText:
    """Tokens start..stop of the pieces taken as one text."""
    spans = []
    offset = 0  # where the piece begins in the long text
    for piece, size in zip(pieces, sizes, strict=True):
        first, last = max(start - offset, 0), min(stop - offset, size)
        if first < last:
            spans.append(FileSpan(piece, first, last, dtype))
        offset += size
    return TokenText(spans)
