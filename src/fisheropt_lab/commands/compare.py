"""`fisheropt compare`: train the same model with each optimizer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from fisheropt_lab import machine
from fisheropt_lab.comparison import run_comparison, timestamp
from fisheropt_lab.files import default_folder
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.progress import progress_on
from fisheropt_lab.report.table import terminal_table
from fisheropt_lab.request import Request, prepare
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.spec import Spec
from fisheropt_lab.tasks import TASKS, Task

INTERRUPTED = 130  # exit code a shell expects after Ctrl-C

COMPARE_EXAMPLES = """
Examples:

  fisheropt compare text --quick

  fisheropt compare text --optimizers adamw,fadam,fadafactor,sgd

  fisheropt compare text --data my_articles/ --size small --out runs/articles

  fisheropt compare text --lrs x0.5,x1,x2 --seeds 5

  fisheropt compare digits

  fisheropt compare text --quick --resume      (after Ctrl-C)
"""


def compare(
    task: Annotated[
        str,
        typer.Argument(help=f"What to train on: {'; '.join(f'{name}, {kind.about}' for name, kind in TASKS.items())}."),
    ],
    optimizers: Annotated[
        str | None,
        typer.Option(
            help=f"Which ones, the baseline first: {', '.join(CONTENDERS)}. Default: "
            f"{'; '.join(f'{name} {kind.optimizers}' for name, kind in TASKS.items())}."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and learning rates.")] = False,
    size: Annotated[
        str | None, typer.Option(help="Model size, text only: tiny (1M, the default), small (13M), base (100M), 1b.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per trial.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences or images per step.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Bytes per sequence, text only.")] = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="Peak learning rates: values for all (1e-3,2e-3) or multiples of each one's own (x0.5,x1,x2)."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds the best learning rate is trained on.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Your own UTF-8 text, a file or a folder, text only; default: Python's documentation."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: the next free runs/TASK-PRESET.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out, or with the latest run of this task and preset.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = Request.device,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: every core.")] = None,
    backend: Annotated[
        str, typer.Option(help="Backend of fisheropt's optimizers: auto, eager, compile, numba, triton.")
    ] = Request.backend,
) -> None:
    """Train the same model with each optimizer on an equal budget: table, plots and report.

    Every optimizer gets the same number of learning rates, the same schedule, batches, seeds and initial weights. The
    learning rate is chosen by validation loss; the test split is read once, for the chosen one.
    """
    request = Request(
        task, quick, optimizers, size, steps, batch_size, seq_len, lrs, seeds, data, device, threads, backend
    )
    root = out or default_folder(f"{task}-{request.preset}", resume)
    prepared, spec = prepare(request)
    torch.set_num_threads(spec.threads)
    folder = RunFolder(root)
    folder.start(_manifest(prepared, spec), resume)
    console = Console()
    console.print(f"{_headline(spec)}\nrun folder: {root}", highlight=False)
    try:
        with progress_on(console) as progress:
            outcome = run_comparison(prepared, spec, folder, progress)
    except KeyboardInterrupt:
        Console(stderr=True).print(f"\nstopped; go on with:  {_resume_command(root)}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    show(outcome, folder, console)


def _manifest(task: Task, spec: Spec) -> dict[str, Any]:
    """run.json: what was asked for, how, where and when."""
    return {
        "spec": spec.to_json(),
        "task_protocol": task.protocol(spec.steps),
        "environment": machine.environment(torch.device(spec.device), spec.threads),
        "command": shlex.join(["fisheropt", *sys.argv[1:]]),
        "started": timestamp(),
    }


def _resume_command(root: Path) -> str:
    """The command that was typed, with --out and --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if not any(argument.partition("=")[0] == "--out" for argument in arguments):
        arguments += ["--out", str(root)]
    return shlex.join(["fisheropt", *arguments, "--resume"])


def _headline(spec: Spec) -> str:
    labels = ", ".join(CONTENDERS[name].label for name in spec.optimizers)
    points = len(spec.lrs[spec.baseline])
    trials = len(spec.optimizers) * (points + len(spec.seeds) - 1)
    controls = [CONTENDERS[name].label for name in spec.optimizers if name in {c.control for c in CONTENDERS.values()}]
    added = "".join(f"\n{label}: AdaFisher where its curvature changes nothing" for label in controls)
    return (
        f"{spec.task}, preset {spec.preset}: {labels}\n{trials} trials of {spec.steps} steps "
        f"(learning rates per optimizer: {points}, seeds: {len(spec.seeds)}){added}"
    )


def show(outcome: Outcome, folder: RunFolder, console: Console) -> None:
    console.print(terminal_table(outcome))
    for finding in outcome.verdict:
        console.print(f"[bold]{finding.headline}[/bold] {finding.details}", highlight=False)
    console.print(f"\n{folder.report}", highlight=False, soft_wrap=True)
