"""`fisheropt show`: what a Fisher diagonal and a likelihood are good for, on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from fisheropt_lab import machine
from fisheropt_lab.commands.studying import INTERRUPTED
from fisheropt_lab.options import known, positive
from fisheropt_lab.show import DEMONSTRATIONS
from fisheropt_lab.show.folder import ShowFolder, run_demonstration

SHOW_EXAMPLES = """
Examples:

  fisheropt show ewc

  fisheropt show regression --seeds 20
"""


def show(
    what: Annotated[
        str,
        typer.Argument(help=f"What: {'; '.join(f'{name}, {one.about}' for name, one in DEMONSTRATIONS.items())}."),
    ],
    seeds: Annotated[int | None, typer.Option(help="How many; default: 5, and 10 for regression.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/show-WHAT. Seeds that are there are not run again.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: 1, for the models are small.")] = None,
) -> None:
    """Show what Fisher information is good for: a table with paired intervals and a picture, in a minute or two."""
    demonstration = DEMONSTRATIONS[known("demonstration", what, DEMONSTRATIONS)]
    count = positive("--seeds", seeds, demonstration.seeds)
    torch.set_num_threads(positive("--threads", threads, 1))
    folder = ShowFolder(out or Path("runs") / f"show-{demonstration.name}")
    folder.start(demonstration, machine.environment(torch.device("cpu"), torch.get_num_threads()))
    console = Console()
    for paragraph in demonstration.protocol:
        console.print(paragraph, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
            bar = bars.add_task(demonstration.name, total=count * demonstration.parts)

            def tick(seed: int, part: str) -> None:
                bars.update(bar, advance=1, description=f"seed {seed}: {part}")

            runs = run_demonstration(demonstration, count, folder, tick)
            bars.update(bar, completed=count * demonstration.parts, description="done")
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on with the seeds that are left", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    for table in demonstration.tables(runs):
        shown = RichTable(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(f"{folder.table}\n{folder.picture}", highlight=False, soft_wrap=True)
