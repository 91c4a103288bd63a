"""`fisheropt info`: what runs here; or, of a task, what a model of a size would need."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from fisheropt_lab import machine
from fisheropt_lab.commands import studies as given
from fisheropt_lab.errors import LabError
from fisheropt_lab.optimizers import CONTENDERS, backends_on
from fisheropt_lab.options import known
from fisheropt_lab.request import Request, asked, choose_device
from fisheropt_lab.tasks import TASKS


def info(
    task: Annotated[
        str | None, typer.Argument(help=f"Also: {', '.join(TASKS)}. Without one, versions, devices and backends.")
    ] = None,
    size: given.Size = None,
    batch_size: given.BatchSize = None,
    seq_len: given.SeqLen = None,
    set_: given.Set = None,
) -> None:
    """Show what runs here; or, of a task's model, parameters, optimizer state and activations."""
    if task is not None:
        _of_task(Request(task=task, size=size, batch_size=batch_size, seq_len=seq_len, set=tuple(set_ or ())))
    elif (size, batch_size, seq_len, set_) != (None, None, None, None):
        raise LabError("the options are those of a task: name one, as in  fisheropt info text --size 1b")
    else:
        _of_machine()


def _of_machine() -> None:
    """Versions, devices, and the backend each optimizer would use on them."""
    console = Console()
    device = choose_device("auto")
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    hardware = machine.hardware(device, torch.get_num_threads())
    console.print(versions, highlight=False)
    console.print(", ".join(f"{key}: {value}" for key, value in hardware.items()), highlight=False)
    devices = [torch.device("cpu")] + ([device] if device.type != "cpu" else [])
    table = Table("Optimizer", *(f"Backend on {one}" for one in devices), "What")
    for contender in CONTENDERS.values():
        cells = (", ".join(backends_on(one, contender.name, "auto")) for one in devices)
        table.add_row(contender.name, *cells, contender.note)
    console.print(table)


def _of_task(request: Request) -> None:
    """The model is built on the meta device, where it has shapes and no numbers: any size takes a moment."""
    from fisheropt_lab.footprint import footprint

    kind = TASKS[known("task", request.task, TASKS)]
    outline = kind.outline(kind.setup(asked(request, kind)).settings)
    found = footprint(outline)
    console = Console()
    size = f", size {request.size or kind.sizes[0]}" if kind.sizes else ""
    console.print(
        f"{request.task}{size}: {found.parameters:,} parameters, {_gib(found.weight_bytes)} of weights and as much of "
        f"gradients\nactivations of {outline.batch}: about {_gib(found.activation_bytes)} kept for the backward pass",
        highlight=False,
    )
    table = Table("Optimizer", "State", "B/param", "Weights, gradients and state")
    for name, state in found.state_bytes.items():
        if state is None:
            table.add_row(name, "not to be counted without numbers", "-", "-")
        else:
            whole = 2 * found.weight_bytes + state
            table.add_row(name, _gib(state), f"{state / found.parameters:.2f}", _gib(whole))
    console.print(table)


def _gib(size: float) -> str:
    """A size a person can read."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"
