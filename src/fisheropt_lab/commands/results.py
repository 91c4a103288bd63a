"""`fisheropt results`: the trainings of a run, listed and filtered."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fisheropt_lab.errors import LabError
from fisheropt_lab.options import known
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.sweeps.store import COLUMNS

SHOWN = ("optimizer", "options", "lr", "seed", "validation", "test", "diverged_at", "seconds")


def results(
    folder: Annotated[Path, typer.Argument(help="A run folder; it may still be running.")],
    optimizer: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Only with this option, as rho=0.5.")] = None,
    diverged: Annotated[bool, typer.Option("--diverged", help="Only those that diverged.")] = False,
    tested: Annotated[
        bool, typer.Option("--tested", help="Only reported ones, which were asked about the test.")
    ] = False,
    sort: Annotated[
        str, typer.Option(help=f"By one of {', '.join(SHOWN)}; the default is the order of finishing.")
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, every column.")] = False,
) -> None:
    """List the trainings of a run."""
    store = RunFolder(folder).store
    if not store.exists():
        raise LabError(f"{folder} holds no run")
    wanted: list[tuple[str, Any]] = []
    if optimizer is not None:
        wanted.append(("optimizer = ?", optimizer))
    if seed is not None:
        wanted.append(("seed = ?", seed))
    conditions = [condition for condition, _ in wanted]
    conditions += ["diverged_at IS NOT NULL"] if diverged else []
    conditions += ["test IS NOT NULL"] if tested else []
    order = known("column", sort, SHOWN) if sort else "rowid"
    rows = store.rows(" AND ".join(conditions) or "1", tuple(value for _, value in wanted), order)
    rows = [row for row in rows if all(_has(row, word) for word in option or ())]
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        return
    table = Table(*SHOWN, title=f"{len(rows)} training{'' if len(rows) == 1 else 's'}", title_justify="left")
    for row in rows:
        table.add_row(*(_cell(name, row[COLUMNS.index(name)]) for name in SHOWN))
    Console().print(table)


def _has(row: tuple[Any, ...], word: str) -> bool:
    name, equals, value = word.partition("=")
    if not equals:
        raise LabError(f"--option takes NAME=VALUE, not {word!r}")
    options = json.loads(row[COLUMNS.index("options")])
    if name not in options:
        return False
    try:
        return bool(options[name] == json.loads(value))
    except json.JSONDecodeError:
        return bool(options[name] == value)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "options":
        return ", ".join(f"{key}={item}" for key, item in json.loads(value).items()) or "-"
    if name in ("validation", "test"):
        return f"{value:.4f}"
    return f"{value:.1f}" if name == "seconds" else f"{value:g}" if isinstance(value, float) else str(value)
