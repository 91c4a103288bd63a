"""What a comparison says while it runs: a live display on a terminal, a line per finished trial elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.record import Record
from fisheropt_lab.spec import Trial


class Progress(Protocol):
    """What the comparison tells."""

    def begin(self, trials: int, steps: int) -> None: ...
    def phase(self, what: str) -> None: ...
    def trial_started(self, trial: Trial) -> None: ...
    def step(self, done: int, loss: float, lr: float) -> None: ...
    def trial_finished(self, record: Record) -> None: ...
    def trial_found(self, record: Record) -> None: ...


def progress_on(console: Console) -> LineProgress:
    """The display that suits the console; a context manager."""
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


class LineProgress:
    """One line per phase and per finished trial: for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.trials = self.done = self.steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def begin(self, trials: int, steps: int) -> None:
        self.trials, self.steps = trials, steps

    def phase(self, what: str) -> None:
        self.console.print(f"[dim]{what}[/dim]")

    def trial_started(self, trial: Trial) -> None:
        pass

    def step(self, done: int, loss: float, lr: float) -> None:
        pass

    def trial_finished(self, record: Record) -> None:
        self.done += 1
        self.console.print(self._line(record))

    def trial_found(self, record: Record) -> None:
        self.done += 1
        self.console.print(self._line(record) + " [dim](done before)[/dim]")

    def _line(self, record: Record) -> str:
        if record.validation_loss is None:
            result = f"diverged at step {record.diverged_at_step}"
        else:
            result = f"validation loss {record.validation_loss:.4f}"
        width = len(str(self.trials))
        count = f"{self.done:>{width}}/{self.trials}"
        return f"{count}  {describe(record.trial):<30} {result}  ({record.seconds:.1f} s training)"


class LiveProgress(LineProgress):
    """Two bars that stay at the bottom, the whole comparison and the current trial; finished trials scroll above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Bars(
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]:<6}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.overall = self.bars.add_task("all trials", total=None, unit="steps")
        self.current = self.bars.add_task("", total=None, unit="steps", visible=False)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, trials: int, steps: int) -> None:
        super().begin(trials, steps)
        self.bars.update(self.overall, total=trials * steps)

    def trial_started(self, trial: Trial) -> None:
        self.title = describe(trial)
        self.bars.reset(self.current, total=self.steps, description=self.title, visible=True)

    def step(self, done: int, loss: float, lr: float) -> None:
        self.bars.update(self.current, completed=done, description=f"{self.title} [bold]{loss:.3f}[/bold]")
        self.bars.update(self.overall, completed=self.done * self.steps + done)

    def trial_finished(self, record: Record) -> None:
        super().trial_finished(record)
        self.bars.update(self.overall, completed=self.done * self.steps)
        self.bars.update(self.current, visible=False)

    def trial_found(self, record: Record) -> None:
        super().trial_found(record)
        self.bars.update(self.overall, completed=self.done * self.steps)


def describe(trial: Trial) -> str:
    """A trial in a few words."""
    return f"{CONTENDERS[trial.optimizer].label} lr {trial.lr:g} seed {trial.seed}"
