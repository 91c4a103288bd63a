"""A text with its three splits, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass

from fisheropt_lab.errors import LabError
from fisheropt_lab.tasks.text.bytetext import ByteText

TRAIN, VALIDATION = 0.90, 0.05  # shares of the text; the test split is the rest


@dataclass(frozen=True)
class Corpus:
    """Three texts that share no byte, and where they are from."""

    source: str  # a phrase for the report
    how_split: str  # a phrase for the report
    sha256: str  # of all bytes in order, before splitting
    train: ByteText
    validation: ByteText
    test: ByteText

    def sizes(self) -> dict[str, int]:
        """Bytes per split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def require_windows_of(self, length: int) -> None:
        """Raise unless every split holds at least one window of `length` bytes."""
        for split, size in self.sizes().items():
            if size < length:
                raise LabError(
                    f"the text is too short: its {split} split ({self.how_split}) has {size} bytes, "
                    f"and a sequence needs {length}"
                )
