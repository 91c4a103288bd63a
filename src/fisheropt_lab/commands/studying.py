"""What `compare` and `ablate` share: from a request to a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from fisheropt_lab import machine
from fisheropt_lab.clock import timestamp
from fisheropt_lab.errors import LabError
from fisheropt_lab.files import default_folder
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.options import known
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.progress import progress_on
from fisheropt_lab.report.table import terminal_table
from fisheropt_lab.request import Request, choose_jobs, prepare
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.spec import Spec
from fisheropt_lab.study import run_study
from fisheropt_lab.sweeps import Executor
from fisheropt_lab.sweeps.local import InTurn, Processes
from fisheropt_lab.sweeps.slurm import Submitit
from fisheropt_lab.tasks import Task
from fisheropt_lab.tuning import least_trials

INTERRUPTED = 130  # exit code a shell expects after Ctrl-C
EXECUTORS = ("local", "slurm")


def study(
    request: Request, out: Path | None, resume: bool, jobs: int | None, executor: str, cluster: tuple[str, ...]
) -> None:
    """Check the request, run the study with a live display, and show what came out."""
    root = out or default_folder(request.name, resume)
    known("executor", executor, EXECUTORS)
    task, spec = prepare(request)
    at_once = choose_jobs(jobs, spec)
    torch.set_num_threads(spec.threads)
    folder = RunFolder(root)
    workers = _executor(executor, at_once, root / "slurm", cluster)
    folder.start(_manifest(task, spec), resume)
    console = Console()
    console.print(f"{headline(spec, at_once)}\nrun folder: {root}", highlight=False)
    try:
        with progress_on(console) as progress, workers:
            outcome = run_study(task, spec, folder, workers, progress)
    except KeyboardInterrupt:
        Console(stderr=True).print(f"\nstopped; go on with:  {_resume_command(root)}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    show(outcome, folder, console)


def show(outcome: Outcome, folder: RunFolder, console: Console) -> None:
    """The table and the findings, and where the rest is."""
    console.print(terminal_table(outcome))
    for finding in outcome.verdict:
        console.print(f"[bold]{finding.headline}[/bold] {finding.details}", highlight=False)
    console.print(f"\n{folder.report}", highlight=False, soft_wrap=True)


def headline(spec: Spec, at_once: int) -> str:
    """What is going to happen, in a few lines."""
    labels = ", ".join(entry.label for entry in spec.entries.values())
    points = len(spec.entries[spec.baseline].lrs)
    controls = {kind.control for kind in CONTENDERS.values()} & {entry.optimizer for entry in spec.entries.values()}
    added = "".join(
        f"\n{CONTENDERS[name].label}: AdaFisher where its curvature changes nothing"
        for name in sorted(filter(None, controls))
    )
    return (
        f"{spec.task}, {spec.study}, preset {spec.preset}: {labels}\n"
        f"trials of {spec.steps} steps, {at_once} at a time: {least_trials(spec)} or more to tune ({points} learning "
        f"rates each to begin with), then {len(spec.seeds)} fresh seeds in two tracks{added}"
    )


def _executor(name: str, at_once: int, folder: Path, cluster: tuple[str, ...]) -> Executor:
    if name == "slurm":
        return Submitit(folder, dict(map(_parameter, cluster)))
    if cluster:
        raise LabError("--cluster applies to --executor slurm only")
    return InTurn() if at_once == 1 else Processes(at_once)


def _parameter(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise LabError(f"--cluster takes NAME=VALUE, not {word!r}")
    return name, int(value) if value.isdigit() else value


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
