"""What a training run tells while it goes on: a bar in a terminal, a line per evaluation in a log file."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fisheropt_lab.train.folder import Line


class Display:
    """A context manager; on processes other than the first it is silent (``console`` is None)."""

    def __init__(self, console: Console | None, steps: int, done: int, unit: str) -> None:
        self.console = console
        self.steps = steps
        self.unit = unit
        self.bar: Progress | None = None
        if console is not None and console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                expand=True,
            )
            self.task = self.bar.add_task("training", total=steps, completed=done)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, line: Line) -> None:
        """A step is done; an evaluation is worth a line."""
        if self.bar is not None:
            self.bar.update(self.task, completed=line["step"], description=f"loss [bold]{line['loss']:.3f}[/bold]")
        if self.console is not None and "validation" in line:
            width = len(str(self.steps))
            self.console.print(
                f"step {line['step']:>{width}}/{self.steps}  loss {line['loss']:.4f}  "
                f"validation {line['validation']:.4f} {self.unit}  ({line['seconds']:.1f} s)",
                highlight=False,
            )

    def say(self, text: str) -> None:
        """A line about the run."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)
