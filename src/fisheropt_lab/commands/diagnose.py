"""`fisheropt diagnose`: what an optimizer's f is worth."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fisheropt_lab import machine
from fisheropt_lab.clock import timestamp
from fisheropt_lab.diagnose import (
    DiagnoseRequest,
    draw_picture,
    findings_table,
    render_page,
    run_diagnosis,
    terminal_table,
)
from fisheropt_lab.diagnose.request import OPTIMIZERS, STEPS, TASKS_WITH_FISHER, load, plan_of
from fisheropt_lab.errors import LabError
from fisheropt_lab.files import default_folder, make_writable_folder, write_json, write_text
from fisheropt_lab.optimizers import contender
from fisheropt_lab.options import known
from fisheropt_lab.tasks import TASKS


def diagnose(
    task: Annotated[str, typer.Argument(help=f"What to train on: {' or '.join(TASKS_WITH_FISHER)}.")],
    optimizer: Annotated[str, typer.Option(help=f"Whose f: {', '.join(OPTIMIZERS)}.")] = DiagnoseRequest.optimizer,
    steps: Annotated[
        int | None, typer.Option(help=f"Default: {', '.join(f'{name} {n}' for name, n in STEPS.items())}.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: that of fisheropt compare.")] = None,
    batches: Annotated[int | None, typer.Option(help="Fresh batches per look, at least 2; default: 16.")] = None,
    looks: Annotated[int | None, typer.Option(help="How often to look, each time twice as late; default: 5.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and the batches.")] = DiagnoseRequest.seed,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: every core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: the next free runs/diagnose-TASK.")] = None,
) -> None:
    """Train, and see how far the optimizer's f is from the Fisher information: table, picture and page."""
    request = DiagnoseRequest(task, optimizer, steps, lr, batches, looks, seed, threads)
    known("task", task, TASKS_WITH_FISHER)
    known("optimizer", optimizer, OPTIMIZERS)
    plan = plan_of(request, TASKS[task].lrs.get(optimizer, contender(optimizer).lr))
    folder = out or default_folder(f"diagnose-{task}", resume=False)
    if (folder / "monitor.jsonl").exists():
        raise LabError(f"{folder} already holds a diagnosis; name another --out")
    make_writable_folder(folder)
    torch.set_num_threads(plan.threads)
    console = Console()
    with Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=plan.steps)
        run = run_diagnosis(
            load(task),
            plan,
            folder / "monitor.jsonl",
            lambda done, what: progress.update(bar, completed=done, description=what),
        )
    manifest = {
        "command": shlex.join(["fisheropt", *sys.argv[1:]]),
        "environment": machine.environment(torch.device("cpu"), plan.threads),
        "finished": timestamp(),
    }
    write_json(folder / "diagnosis.json", {**run.to_json(), **manifest})
    draw_picture(run, folder / "diagnosis.png")
    write_text(folder / "diagnosis.html", render_page(run, folder / "diagnosis.png", manifest))
    console.print(terminal_table(run.looks[-1]))
    console.print(findings_table(run.looks[-1]))
    console.print(f"\n{folder / 'diagnosis.html'}", highlight=False, soft_wrap=True)
