"""`fisheropt info`: versions, devices, and the backend of every optimizer."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from fisheropt_lab import machine
from fisheropt_lab.optimizers import CONTENDERS, backends_on
from fisheropt_lab.request import choose_device


def info() -> None:
    """Show versions, devices, and the backend each optimizer would use on them."""
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
