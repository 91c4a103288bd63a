"""`fisheropt compare`: train the same model with each optimizer."""

from __future__ import annotations

from typing import Annotated

import typer

from fisheropt_lab.commands import studies as given
from fisheropt_lab.commands.studying import study
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.request import Request
from fisheropt_lab.tasks import TASKS

COMPARE_EXAMPLES = """
Examples:

  fisheropt compare text --quick

  fisheropt compare text --optimizers adamw,fadam,fadafactor,sgd

  fisheropt compare text --data my_articles/ --size small --out runs/articles

  fisheropt compare text --lrs x0.5,x1,x2 --tune lr --seeds 10

  fisheropt compare digits

  fisheropt compare text --quick --resume      (after Ctrl-C)
"""


def compare(
    task: Annotated[str, typer.Argument(help=f"What to train on: {given.TASK_HELP}.")],
    optimizers: Annotated[
        str | None,
        typer.Option(
            help=f"Which ones, the baseline first: {', '.join(CONTENDERS)}. Default: "
            f"{'; '.join(f'{name} {kind.optimizers}' for name, kind in TASKS.items())}."
        ),
    ] = None,
    quick: given.Quick = False,
    size: given.Size = None,
    steps: given.Steps = None,
    batch_size: given.BatchSize = None,
    seq_len: given.SeqLen = None,
    lrs: given.Lrs = None,
    tune: Annotated[
        str | None, typer.Option(help="lr, or lr,weight_decay,beta2 (the default), tuned in this order.")
    ] = None,
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
    """Train the same model with each optimizer on an equal budget: table, plots and report.

    Every optimizer is tuned with the same number of trials on one seed, by validation loss; then everything is frozen,
    and fresh seeds are trained in two tracks: each optimizer at its own settings, and at the baseline's. The test
    split is read once, at the end of each reported training.
    """
    request = Request(
        task=task,
        quick=quick,
        optimizers=optimizers,
        size=size,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        lrs=lrs,
        tune=tune,
        seeds=seeds,
        data=data,
        tokenizer=tokenizer,
        set=tuple(set_ or ()),
        device=device,
        threads=threads,
        backend=backend,
    )
    study(request, out, resume, jobs, executor, tuple(cluster or ()))
