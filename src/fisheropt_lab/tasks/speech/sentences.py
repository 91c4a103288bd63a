"""Short English sentences to be spoken: those of the standard library's documentation that are nothing but words."""

from __future__ import annotations

import re
from functools import cache

from fisheropt_lab.tasks.text.python_docs import documents

WORDS = (3, 9)
CHARACTERS = 48  # at most

_SENTENCE = re.compile(r"[A-Z][a-z]*(?:,? [a-z]+(?:'[a-z]+)?)+[.!?]")
_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[a-z']+")


@cache
def sentences() -> tuple[str, ...]:
    """Each once, in lower case and without punctuation, in alphabetical order."""
    found = set()
    for _, text in documents():
        for paragraph in text.split("\n\n"):
            for sentence in _END.split(" ".join(paragraph.split())):
                if _SENTENCE.fullmatch(sentence):
                    words = _WORD.findall(sentence.lower())
                    if WORDS[0] <= len(words) <= WORDS[1] and len(" ".join(words)) <= CHARACTERS:
                        found.add(" ".join(words))
    return tuple(sorted(found))
