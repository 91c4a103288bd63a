"""Where square crops of pictures come from, for a model: the photographs of two wheels, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fisheropt_lab.tasks.protocol import Split

Pixels = NDArray[np.uint8]  # (S, S, 3) for a crop, (height, width, 3) for a picture


class Pictures(Protocol):
    """A training part to draw from, and crops of validation and test that are always the same."""

    @property
    def source(self) -> str:
        """What they are, for the report."""
        ...

    @property
    def how_split(self) -> str:
        """How the three parts came about, for the report."""
        ...

    @property
    def sha256(self) -> str:
        """Changes with the pictures and with the split."""
        ...

    @property
    def sizes(self) -> Mapping[str, str]:
        """How much is in each part, in words."""
        ...

    def draw(self, random: np.random.Generator, count: int) -> list[Pixels]:
        """Random crops of the training part."""
        ...

    def held_out(self, split: Split, most: int) -> list[Pixels]:
        """At most so many crops of a part, spread evenly over it, without overlap."""
        ...


def spread(available: int, most: int) -> list[int]:
    """At most so many of the first integers, evenly spaced."""
    wanted = min(available, most)
    return [i * available // wanted for i in range(wanted)]
