"""What a study says while it runs: a live display on a terminal, a line per finished trial elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fisheropt_lab.optimizers import contender
from fisheropt_lab.record import Record
from fisheropt_lab.spec import Trial


class Progress(Protocol):
    """What the study tells."""

    def begin(self, trials: int, steps: int) -> None: ...
    def phase(self, what: str) -> None: ...
    def step(self, trial: str, done: int, loss: float) -> None: ...
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
        """How many trials there will be, as far as one knows; more may be said later."""
        self.trials, self.steps = trials, steps

    def phase(self, what: str) -> None:
        self.console.print(f"[dim]{what}[/dim]")

    def step(self, trial: str, done: int, loss: float) -> None:
        pass

    def trial_finished(self, record: Record) -> None:
        self.done += 1
        self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def trial_found(self, record: Record) -> None:
        self.done += 1
        self.console.print(self._line(record) + " [dim](done before)[/dim]", highlight=False, soft_wrap=True)

    def _line(self, record: Record) -> str:
        if record.validation_loss is None:
            result = f"diverged at step {record.diverged_at_step}"
        else:
            result = f"validation loss {record.validation_loss:.4f}"
        width = len(str(self.trials))
        count = f"{self.done:>{width}}/{self.trials}"
        return f"{count}  {describe(record.trial):<36} {result}  ({record.seconds:.1f} s training)"


class LiveProgress(LineProgress):
    """Bars that stay at the bottom, the whole study and each running trial; finished trials scroll above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Bars(
            TextColumn("{task.description:<40}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.overall = self.bars.add_task("all trials", total=None)
        self.running: dict[str, tuple[TaskID, int]] = {}  # by trial id: its bar, and the steps it has done

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

    def step(self, trial: str, done: int, loss: float) -> None:
        bar, _ = self.running.get(trial) or (self.bars.add_task(trial, total=self.steps), 0)
        self.running[trial] = bar, done
        self.bars.update(bar, completed=done, description=f"{trial} [bold]{loss:.3f}[/bold]")
        self._show_overall()

    def trial_finished(self, record: Record) -> None:
        super().trial_finished(record)
        self._ended(record)

    def trial_found(self, record: Record) -> None:
        super().trial_found(record)
        self._ended(record)

    def _ended(self, record: Record) -> None:
        bar, _ = self.running.pop(record.trial.id, (None, 0))
        if bar is not None:
            self.bars.remove_task(bar)
        self._show_overall()

    def _show_overall(self) -> None:
        running = sum(done for _, done in self.running.values())
        self.bars.update(self.overall, completed=self.done * self.steps + running)


def describe(trial: Trial) -> str:
    """A trial in a few words."""
    changed = "".join(f" {name} {value}" for name, value in trial.options + trial.settings)
    return f"{contender(trial.optimizer).label}{changed} lr {trial.lr:g} seed {trial.seed}"
