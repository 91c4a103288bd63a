"""A demonstration: the same small experiment on several seeds, then tables and a picture of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fisheropt_lab.intervals import paired

Run = dict[str, Any]
"""What one seed leaves behind, in plain JSON values."""

Tick = Callable[[str], None]
"""Told after each part of a seed, with what was done."""


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column says what a row is."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Demonstration:
    """One of the commands of `fisheropt show`.

    Attributes:
        name: on the command line.
        about: one line of help.
        protocol: what is done, for people: the data, the model, what is tuned on what.
        seeds: how many, unless the user says otherwise.
        parts: how often `run` ticks per seed.
        run: one seed -> its numbers.
        tables: of the runs of all seeds.
        draw: the same as a picture.
    """

    name: str
    about: str
    protocol: tuple[str, ...]
    seeds: int
    parts: int
    run: Callable[[int, Tick], Run]
    tables: Callable[[Sequence[Run]], tuple[Table, ...]]
    draw: Callable[[Sequence[Run]], Figure]


def mean_text(values: Sequence[float], digits: int = 1) -> str:
    """The mean over seeds."""
    return f"{fmean(values):.{digits}f}"


def difference_text(mine: Sequence[float], theirs: Sequence[float], digits: int = 1) -> str:
    """The mean of the paired differences, and their 95 % interval; a single seed has none."""
    difference = paired(mine, theirs)
    if difference.seeds < 2:
        return f"{difference.mean:+.{digits}f}"
    low, high = difference.interval
    return f"{difference.mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def tidy_axes(axes: Any) -> None:
    """The house's look."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
