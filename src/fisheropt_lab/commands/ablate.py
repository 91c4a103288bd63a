"""`fisheropt ablate`: the paper's ablation tables."""

from __future__ import annotations

from typing import Annotated

import typer

from fisheropt_lab.ablations import ABLATIONS
from fisheropt_lab.commands import studies as given
from fisheropt_lab.commands.studying import study
from fisheropt_lab.request import Request

ABLATE_EXAMPLES = """
Examples:

  fisheropt ablate exponent --task text --quick

  fisheropt ablate changes --task digits

  fisheropt ablate loss --task digits

  fisheropt ablate epsilon --task text --seeds 10 --out runs/epsilon
"""


def ablate(
    what: Annotated[
        str, typer.Argument(help="; ".join(f"{name}, {one.title.lower()}" for name, one in ABLATIONS.items()) + ".")
    ],
    task: Annotated[str, typer.Option(help=f"What to train on: {given.TASK_HELP}.")] = Request.task,
    quick: given.Quick = False,
    size: given.Size = None,
    steps: given.Steps = None,
    batch_size: given.BatchSize = None,
    seq_len: given.SeqLen = None,
    lrs: given.Lrs = None,
    seeds: given.Seeds = None,
    data: given.Data = None,
    tokenizer: given.Tokenizer = None,
    set_: given.Set = None,
    out: given.Out = None,
    resume: given.Resume = False,
    device: given.Device = Request.device,
    threads: given.Threads = None,
    jobs: given.Jobs = None,
    executor: given.Executor = "local",
    cluster: given.Cluster = None,
    backend: given.Backend = Request.backend,
) -> None:
    """Change one thing about FAdam and hold what comes out against FAdam as it is.

    The protocol is that of `compare`: every value gets a learning rate of its own in the tuned track, and FAdam's in
    the drop-in track, on fresh seeds, with intervals.
    """
    request = Request(
        task=task,
        study=what,
        quick=quick,
        size=size,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        lrs=lrs,
        seeds=seeds,
        data=data,
        tokenizer=tokenizer,
        set=tuple(set_ or ()),
        device=device,
        threads=threads,
        backend=backend,
    )
    study(request, out, resume, jobs, executor, tuple(cluster or ()))
