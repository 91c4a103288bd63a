"""The labels a recogniser writes: letters, apostrophe and space, as in LibriSpeech."""

from __future__ import annotations

from fisheropt_lab.errors import LabError
from fisheropt_lab.models.recognizer import BLANK

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
LABELS = len(CHARACTERS) + 1  # and the blank, number 0

_LABEL = {character: i for i, character in enumerate(CHARACTERS, start=BLANK + 1)}


def encode(text: str) -> list[int]:
    """The labels of a transcript.

    Raises:
        LabError: it has a character that is none of `CHARACTERS`.
    """
    try:
        return [_LABEL[character] for character in text]
    except KeyError as error:
        raise LabError(
            f"the transcript {text!r} has the character {error.args[0]!r}; only letters a-z, apostrophe and space are "
            "known: spell out digits and abbreviations, drop punctuation"
        ) from None


def decode(labels: list[int]) -> str:
    """The text of labels without blanks."""
    return "".join(CHARACTERS[label - 1] for label in labels)
