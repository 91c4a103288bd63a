"""Text files as pieces of text: plain or compressed, prose or JSON lines. Never a whole file in memory.

.txt .md ...     the text of the file
.jsonl .ndjson   one JSON object per line, as C4 and its like are distributed; its "text" is a document
.gz .zst         either of these, compressed
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fisheropt_lab.errors import LabError

PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex")
JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".zst")
CHUNK = 1 << 20  # characters
FIELD = "text"
SEPARATOR = "\n\n"  # between documents


def kind_of(path: Path) -> tuple[str, str]:
    """(what is inside, how it is compressed): lower-case suffixes, "" where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), packed


def is_text(path: Path) -> bool:
    """Whether the name says that this is a text the lab reads."""
    return kind_of(path)[0] in PROSE + JSON_LINES


def is_plain(path: Path) -> bool:
    """Whether the bytes of the file are the text itself, so that it can be read where it lies."""
    inside, packed = kind_of(path)
    return not packed and inside not in JSON_LINES


def documents(path: Path) -> Iterator[str]:
    """The text of a file in pieces: documents of JSON lines, and of prose pieces of bounded length.

    Raises:
        LabError: it cannot be read, is not UTF-8, is not what its name says, or needs a package that is not there.
    """
    inside, packed = kind_of(path)
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(io.TextIOWrapper(_open(path, packed, stack), encoding="utf-8", newline=""))
            if inside in JSON_LINES:
                yield from _json_lines(path, stream)
            else:
                yield from _prose(stream)
    except UnicodeDecodeError as error:
        raise LabError(f"{path} is not UTF-8 text: {error.reason}") from None
    except (OSError, EOFError, zlib.error, *_errors_of(packed)) as error:
        raise LabError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _prose(stream: IO[str]) -> Iterator[str]:
    """Pieces that end where a line does, if there are lines: a tokenizer should not see words cut in two."""
    rest = ""
    while piece := stream.read(CHUNK):
        whole, newline, rest = (rest + piece).rpartition("\n")
        if newline:
            yield whole + newline
        elif len(rest) > 16 * CHUNK:
            yield rest
            rest = ""
    if rest:
        yield rest


def _json_lines(path: Path, stream: IO[str]) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[FIELD]
        except (json.JSONDecodeError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise LabError(f'{path}, line {number}: not a JSON object with a string under "{FIELD}"')
        yield text + SEPARATOR


def _open(path: Path, packed: str, stack: ExitStack) -> IO[bytes]:
    if packed == ".gz":
        return stack.enter_context(gzip.open(path, "rb"))
    if packed == ".zst":
        source = stack.enter_context(path.open("rb"))
        return stack.enter_context(_zstandard().ZstdDecompressor().stream_reader(source, read_across_frames=True))
    return stack.enter_context(path.open("rb"))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise LabError("files that end in .zst need zstandard: pip install 'fisheropt[text]'") from None
    return zstandard


def _errors_of(packed: str) -> tuple[type[Exception], ...]:
    return (_zstandard().ZstdError,) if packed == ".zst" else ()
