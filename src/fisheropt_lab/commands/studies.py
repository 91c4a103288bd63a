"""The options that `compare` and `ablate` have in common, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisheropt_lab.tasks import TASKS

TASK_HELP = "; ".join(f"{name}, {kind.about}" for name, kind in TASKS.items())
_SIZES = "; ".join(f"{name} {', '.join(kind.sizes)}" for name, kind in TASKS.items() if kind.sizes)
_SET = "; ".join(
    f"{name} {', '.join(sorted(kind.options - {'size', 'batch_size', 'seq_len', 'data', 'tokenizer'}))}"
    for name, kind in TASKS.items()
    if kind.options - {"size", "batch_size", "seq_len", "data", "tokenizer"}
)

Quick = Annotated[bool, typer.Option("--quick", help="Fewer steps, learning rates and other values; minutes.")]
Size = Annotated[str | None, typer.Option(help=f"Model size, smallest first: {_SIZES}.")]
Steps = Annotated[int | None, typer.Option(help="Steps per trial.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per step.")]
SeqLen = Annotated[int | None, typer.Option(help="Bytes or tokens per sequence, text only.")]
Lrs = Annotated[
    str | None,
    typer.Option(
        help="Peak learning rates: values for all (1e-3,2e-3) or multiples of each one's own (x0.5,x1,x2). These and "
        "no others are tried; by default the grid grows while the best lies at its edge."
    ),
]
Seeds = Annotated[int | None, typer.Option(help="Fresh seeds to report; fewer than 5 support no claim.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Your own data. Text: UTF-8 files or a folder of them, prose or JSON lines, also .gz and .zst; default: "
        "Python's documentation."
    ),
]
Tokenizer = Annotated[
    Path | None, typer.Option(help="Text only: a file of the tokenizers package; default: the tokens are bytes.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help=f"NAME=VALUE, what only one task knows: {_SET}.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; default: the next free one below runs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with --out, or with the latest run of this kind.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Threads = Annotated[int | None, typer.Option(help="CPU threads per training; default: 1.")]
Jobs = Annotated[int | None, typer.Option(help="Trainings at a time; default: one per core, one on an accelerator.")]
Executor = Annotated[str, typer.Option(help="local: processes on this machine; slurm: a cluster, by submitit.")]
Cluster = Annotated[
    list[str] | None,
    typer.Option("--cluster", help="NAME=VALUE for submitit: slurm_partition=gpu, timeout_min=60, cpus_per_task=4."),
]
Backend = Annotated[str, typer.Option(help="Backend of fisheropt's optimizers: auto, eager, compile, numba, triton.")]
