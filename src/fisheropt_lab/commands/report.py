"""`fisheropt report`: the artefacts of a finished run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fisheropt_lab.commands.compare import show
from fisheropt_lab.errors import LabError
from fisheropt_lab.outcome import load_outcome
from fisheropt_lab.report import write_reports
from fisheropt_lab.run_folder import RunFolder


def report(folder: Annotated[Path, typer.Argument(help="A finished run folder.")]) -> None:
    """Make the table, the plots and the page of a finished run again."""
    run = RunFolder(folder)
    if not run.timing.exists():
        raise LabError(f"{folder} holds no finished run")
    outcome = load_outcome(run)
    write_reports(outcome, run)
    show(outcome, run, Console())
