"""`fisheropt train`, and `torchrun ... -m fisheropt_lab train`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from fisheropt_lab import machine
from fisheropt_lab.clock import timestamp
from fisheropt_lab.errors import LabError
from fisheropt_lab.files import default_folder, write_json
from fisheropt_lab.optimizers import CONTENDERS, backends_of, state_bytes
from fisheropt_lab.request import choose_device
from fisheropt_lab.tasks.text.task import TEXT
from fisheropt_lab.train.curves import draw_run
from fisheropt_lab.train.display import Display
from fisheropt_lab.train.folder import TrainFolder
from fisheropt_lab.train.loop import End, Training
from fisheropt_lab.train.plan import Execution, Plan
from fisheropt_lab.train.request import TrainRequest, prepare
from fisheropt_lab.train.stop import StopWish
from fisheropt_lab.train.world import World, joined_world

BAD_INPUT, DIVERGED, KILLED_BY = 2, 3, 128  # exit codes; to the last one the number of the signal is added

TRAIN_EXAMPLES = """
Examples:

  fisheropt train text --optimizer fadam --steps 200

  fisheropt train text --data my_articles/ --size small --precision bfloat16

  torchrun --nproc-per-node=2 -m fisheropt_lab train text --parallel fsdp2 --out runs/two

  fisheropt train text --out runs/two --resume      (the same run, now on one process)
"""


def train(
    task: Annotated[str, typer.Argument(help="What to train on: text.")],
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(CONTENDERS)}.")] = TrainRequest.optimizer,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: the optimizer's own.")] = None,
    size: Annotated[str | None, typer.Option(help="Model size: tiny (1M, the default), small, base, 1b.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: the size's own.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per step, over all processes and micro-batches.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(help="Bytes per sequence.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own UTF-8 text, a file or a folder; default: Python's documentation.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of the data.")] = TrainRequest.seed,
    precision: Annotated[
        str, typer.Option(help="Of forward and backward: float32 or bfloat16. Weights stay in float32.")
    ] = TrainRequest.precision,
    parallel: Annotated[
        str | None, typer.Option(help="none, ddp or fsdp2; default: ddp on several processes, none on one.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Micro-batches that each process cuts its part of the batch into.")
    ] = TrainRequest.accumulate,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default: 20 in a run.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; default: 10 in a run. The last step always gets one.")
    ] = None,
    keep: Annotated[int, typer.Option(help="Checkpoints that are kept, the newest.")] = TrainRequest.keep,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: the next free runs/train-TASK.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with --out (from the beginning, if nothing is there), or with the latest run. The number of "
            "processes, --parallel and --accumulate may differ.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per process; default: the cores, shared out.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Backend of fisheropt's optimizers: auto, eager, compile, numba, triton.")
    ] = TrainRequest.backend,
    monitor: Annotated[
        int,
        typer.Option(help="Steps between lines of monitor.jsonl: clip, epsilon, decay, spectrum of f; 0: no lines."),
    ] = TrainRequest.monitor,
) -> None:
    """Train one model with one optimizer, on one process or, under torchrun, on many: metrics, checkpoints, a picture.

    The loss curve does not depend on the number of processes, nor on where a run was interrupted. SIGTERM and Ctrl-C
    leave a checkpoint of the last step.
    """
    request = TrainRequest(
        task,
        optimizer,
        lr,
        size,
        steps,
        batch_size,
        seq_len,
        data,
        seed,
        precision,
        parallel,
        accumulate,
        eval_every,
        checkpoint_every,
        keep,
        threads,
        backend,
        monitor,
    )
    try:
        code = _train(request, choose_device(device), out, resume)
    except LabError:
        if os.environ.get("RANK", "0") != "0":  # the same on every process; the first one prints it
            raise typer.Exit(BAD_INPUT) from None
        raise
    raise typer.Exit(code)


def _train(request: TrainRequest, device: torch.device, out: Path | None, resume: bool) -> int:
    """The run; the exit code."""
    prepared, plan, execution = prepare(request, device)
    torch.set_num_threads(execution.threads)
    with joined_world(device) as world, StopWish(alone=world.size == 1) as wish:
        root = world.once(lambda: out or default_folder(f"train-{request.task}", resume))
        folder = TrainFolder(root)
        world.once(lambda: folder.start(_manifest(plan, execution, world), plan, resume))
        training = Training(prepared, plan, execution, folder, world)
        restored = training.restore() if resume else None
        display = Display(Console() if world.first else None, plan.steps, training.step, TEXT.units[0].name)
        display.say(_headline(training))
        display.say(f"run folder: {root}" + (f", going on from {restored.name}" if restored is not None else ""))
        with display:
            end = training.run(display, wish)
        if world.first:
            _conclude(training, end, folder)
            display.say(_farewell(training, end, root))
    if end.signal:
        return KILLED_BY + end.signal
    return DIVERGED if end.diverged else 0


def _manifest(plan: Plan, execution: Execution, world: World) -> dict[str, Any]:
    """train.json: what was asked for, how, where and when."""
    return {
        "plan": plan.to_json(),
        "execution": execution.to_json() | {"processes": world.size},
        "environment": machine.environment(world.device, execution.threads),
        "command": shlex.join([*_command(world), *sys.argv[1:]]),
        "started": timestamp(),
    }


def _conclude(training: Training, end: End, folder: TrainFolder) -> None:
    """result.json and curves.png of the run so far."""
    lines = folder.lines()
    evaluated = [line for line in lines if "validation" in line]
    parameters = sum(p.numel() for p in training.model.parameters())  # that of a sharded one is the whole tensor's
    write_json(
        folder.result,
        {
            "steps": end.step,
            "finished": end.step == training.plan.steps,
            "diverged": end.diverged,
            "train_loss": lines[-1]["loss"] if lines else None,
            "validation_loss": evaluated[-1]["validation"] if evaluated else None,
            "validation_step": evaluated[-1]["step"] if evaluated else None,
            "seconds": end.seconds,
            "parameters": parameters,
            "state_bytes": state_bytes(training.optimizer),
            "backends": backends_of(training.optimizer),
            "processes": training.world.size,
            "parallel": training.execution.parallel,
            "ended": timestamp(),
        },
    )
    if lines:
        title = f"{training.kind.label}, lr {training.plan.lr:g}, {training.plan.settings['size']} model"
        draw_run(lines, title, TEXT.units[0].name, folder.curves)


def _headline(training: Training) -> str:
    plan, execution, world = training.plan, training.execution, training.world
    sequences = training.rows * execution.accumulate * world.size
    cut = "" if sequences == training.rows else f" as {world.size} x {execution.accumulate} x {training.rows}"
    return (
        f"{plan.task}, {plan.settings['size']} model, {training.kind.label} at lr {plan.lr:g}, {plan.precision}, "
        f"{plan.steps} steps of {sequences} sequences{cut}; "
        f"{world.size} process{'es' if world.size > 1 else ''} on {world.device.type}, {execution.parallel}"
    )


def _farewell(training: Training, end: End, root: Path) -> str:
    if end.diverged:
        return f"diverged: the loss of step {end.step + 1} is not finite; metrics and checkpoints up to there: {root}"
    if end.signal:
        return f"stopped after step {end.step}; go on with:  {_resume_command(training.world, root)}"
    return f"{root / 'curves.png'}"


def _resume_command(world: World, root: Path) -> str:
    """The command that was typed, with --out and --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if not any(argument.partition("=")[0] == "--out" for argument in arguments):
        arguments += ["--out", str(root)]
    return shlex.join([*_command(world), *arguments, "--resume"])


def _command(world: World) -> list[str]:
    if world.size == 1:
        return ["fisheropt"]
    return ["torchrun", f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', world.size)}", "-m", "fisheropt_lab"]
