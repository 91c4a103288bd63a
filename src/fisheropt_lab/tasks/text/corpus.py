"""A text with its three splits, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text.tokens import TokenText

TRAIN, VALIDATION = 0.90, 0.05  # shares of the text; the test split is the rest
BYTES = 256  # the vocabulary of a text that is read byte by byte


@dataclass(frozen=True)
class Corpus:
    """Three texts that share no byte, and where they are from."""

    source: str  # a phrase for the report
    how_split: str  # a phrase for the report
    sha256: str  # of all bytes in order, before splitting
    train: TokenText
    validation: TokenText
    test: TokenText
    vocabulary: int = BYTES
    bytes_per_token: float = 1.0  # of the whole text: what turns nats per token into nats per byte

    def sizes(self) -> dict[str, int]:
        """Tokens per split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    @property
    def token(self) -> str:
        """What a token is called."""
        return "bytes" if self.vocabulary == BYTES and self.bytes_per_token == 1.0 else "tokens"

    def require_windows_of(self, length: int) -> None:
        """Raise unless every split holds at least one window of `length` tokens."""
        for split, size in self.sizes().items():
            if size < length:
                raise LabError(
                    f"the text is too short: its {split} split ({self.how_split}) has {size} {self.token}, "
                    f"and a sequence needs {length}"
                )
