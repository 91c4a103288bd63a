"""The text every CPython carries: its language reference topics and the docstrings of its standard library.

About two megabytes of English technical prose, present wherever the lab can run, so that the first comparison needs no
download. A document is one topic or all the docstrings of one source file. The sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text.corpus import TRAIN, VALIDATION, Corpus
from fisheropt_lab.tasks.text.tokens import Tokens, TokenText

# Not prose, not the standard library, or (pydoc_data) read as topics instead.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
REPEATABLE = 80  # characters: shorter paragraphs ("See also:") may occur again
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_docs() -> Corpus:
    """The default corpus. Splits go by document and depend on its name only, so they survive changes elsewhere."""
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    sha = hashlib.sha256()
    for name, text in documents():
        encoded = text.encode() + b"\n\n"
        sha.update(encoded)
        parts[split_of(name)].append(encoded)
    if not parts["train"]:
        raise LabError("this Python carries no standard library sources to read; pass your own text with --data")
    return Corpus(
        source=f"documentation prose of CPython {platform.python_version()} (reference topics and docstrings)",
        how_split="by document, about 90/5/5, by a hash of its name",
        sha256=sha.hexdigest(),
        **{split: TokenText([_array(chunks)]) for split, chunks in parts.items()},
    )


def documents() -> Iterator[tuple[str, str]]:
    """(name, text) in a fixed order, without paragraphs that occurred before: topics quote each other, and docstrings
    are copied from class to class. Otherwise a split would be asked about what another one has taught."""
    seen: set[str] = set()
    for name, text in (*_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))):
        fresh = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < REPEATABLE or words not in seen:
                fresh.append(paragraph)
                seen.add(words)
        if any(fresh):
            yield name, "\n\n".join(fresh)


def split_of(name: str) -> str:
    """The split a document belongs to: its name hashed to a number in [0, 1)."""
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    if position < TRAIN:
        return "train"
    return "validation" if position < TRAIN + VALIDATION else "test"


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some Linux distributions package it apart; the docstrings remain
        return
    for name in sorted(topics):
        yield f"topic {name}", topics[name].strip()


def _docstrings(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            yield relative.as_posix(), "\n\n".join(_docstrings_of(path))


def _docstrings_of(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():  # old modules have escapes that the parser now warns about
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # lib2to3 and friends ship files that are wrong on purpose
        return []
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
    return [docstring for docstring in found if docstring]


def _array(chunks: list[bytes]) -> Tokens:
    return np.frombuffer(b"".join(chunks), dtype=np.uint8)
