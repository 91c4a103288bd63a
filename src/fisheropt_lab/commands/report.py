"""`fisheropt report` and `fisheropt plot`: the artefacts of a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fisheropt_lab.commands.studying import show
from fisheropt_lab.errors import LabError
from fisheropt_lab.outcome import load_outcome
from fisheropt_lab.report import draw, write_reports
from fisheropt_lab.run_folder import RunFolder

Folder = Annotated[Path, typer.Argument(help="A run folder.")]


def report(folder: Folder) -> None:
    """Make the table, the plots and the page of a finished run again."""
    run = RunFolder(folder)
    if not run.timing.exists():
        raise LabError(f"{folder} holds no finished run")
    outcome = load_outcome(run)
    write_reports(outcome, run)
    show(outcome, run, Console())


def plot(folder: Folder) -> None:
    """Draw the picture of a run again, also of one that is still training its reported seeds."""
    run = RunFolder(folder)
    draw(load_outcome(run), run)
    Console().print(str(run.curves), highlight=False, soft_wrap=True)
