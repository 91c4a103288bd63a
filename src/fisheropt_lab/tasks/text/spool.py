"""Texts that cannot be read where they lie, compressed, in JSON lines or in need of a tokenizer, written out once.

Training reads windows at random places, so the tokens go to a flat file in the cache folder ($FISHEROPT_CACHE, or
fisheropt in the user's cache), piece by piece: no text is ever whole in memory. The file is found again as long as the
text files and the tokenizer have the same names, sizes and times of change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import PARTIAL, make_writable_folder, read_json, write_json
from fisheropt_lab.tasks.text.corpus import BYTES
from fisheropt_lab.tasks.text.reading import documents


@dataclass(frozen=True)
class Spooled:
    """A flat file of tokens, and what is known of it."""

    path: Path
    dtype: str
    tokens: int
    text_bytes: int  # of the text in UTF-8
    sha256: str  # of these
    vocabulary: int


def spool(files: Sequence[Path], tokenizer: Path | None) -> Spooled:
    """The tokens of these files, one after the other; written unless they are there."""
    folder = cache_folder()
    key = _key([*files, *([tokenizer] if tokenizer else [])])
    path, about = folder / f"{key}.tokens", folder / f"{key}.json"
    if about.exists() and path.exists():
        return Spooled(path, **read_json(about))
    make_writable_folder(folder)
    encoder = _encoder(tokenizer)
    sha, tokens, size = hashlib.sha256(), 0, 0
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with partial.open("wb") as out:
        for text in _texts(files):
            raw = text.encode()
            sha.update(raw)
            size += len(raw)
            encoded = np.asarray(encoder.encode(text, raw), dtype=encoder.dtype)
            tokens += len(encoded)
            out.write(encoded.tobytes())
    os.replace(partial, path)
    found = Spooled(path, encoder.dtype, tokens, size, sha.hexdigest(), encoder.vocabulary)
    write_json(about, {name: value for name, value in asdict(found).items() if name != "path"})
    return found


def cache_folder() -> Path:
    """Where texts are written out to."""
    named = os.environ.get("FISHEROPT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fisheropt"


def _texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield from documents(file)


def _key(paths: Sequence[Path]) -> str:
    known = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]


class _Bytes:
    dtype, vocabulary = "uint8", BYTES

    def encode(self, text: str, raw: bytes) -> Any:
        return np.frombuffer(raw, dtype=np.uint8)


class _Tokenizer:
    """A file of the tokenizers package."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise LabError("--tokenizer needs tokenizers: pip install 'fisheropt[text]'") from None
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise LabError(f"{path} is not a tokenizer file of the tokenizers package: {error}") from None
        self.vocabulary: int = self.tokenizer.get_vocab_size()
        self.dtype = "uint16" if self.vocabulary <= 1 << 16 else "uint32"

    def encode(self, text: str, raw: bytes) -> Any:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _encoder(tokenizer: Path | None) -> _Bytes | _Tokenizer:
    return _Bytes() if tokenizer is None else _Tokenizer(tokenizer)
