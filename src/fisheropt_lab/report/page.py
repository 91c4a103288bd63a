"""report.html: the whole comparison on one page that needs no other file."""

from __future__ import annotations

import base64
import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.progress import describe
from fisheropt_lab.record import Record
from fisheropt_lab.report.table import columns, footnotes
from fisheropt_lab.spec import Spec


def render_page(outcome: Outcome, picture: Path) -> str:
    """HTML with the picture inlined."""
    environment = Environment(
        loader=PackageLoader("fisheropt_lab.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=f"{outcome.rows[0].label} against {', '.join(row.label for row in outcome.rows[1:])}",
        outcome=outcome,
        spec=outcome.spec,
        describe=describe,
        manifest=outcome.manifest,
        columns=columns(outcome),
        footnotes=footnotes(outcome),
        curvature=_curvature(outcome),
        protocol=protocol(outcome.spec, outcome.manifest["task_protocol"]),
        contenders=[
            (CONTENDERS[name], _backends(outcome, name), outcome.spec.lrs[name]) for name in outcome.spec.optimizers
        ],
        picture=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )


def protocol(spec: Spec, task_protocol: list[str]) -> list[str]:
    """How the numbers came about, a sentence each: first the task's own, then what all tasks share."""
    points = len(spec.lrs[spec.baseline])
    spacing = f", a factor {_factor(spec):g} apart" if points > 1 else ""
    repeats = (
        f"is trained again on seeds {', '.join(map(str, spec.seeds[1:]))}" if len(spec.seeds) > 1 else "is the result"
    )
    return [
        *task_protocol,
        f"Each trial runs {spec.steps} steps: the learning rate is warmed up linearly over {spec.warmup} steps and "
        f"then follows a cosine to zero; the gradient's global norm is clipped at {spec.grad_clip:g}, "
        "for every optimizer.",
        f"Equal budget: every optimizer gets {points} learning rates{spacing}, each trained on seed {spec.seeds[0]}; "
        f"the one with the lowest final validation loss {repeats}.",
        *_controls(spec),
        "A seed fixes the initial weights and the order of the batches; both are the same for every optimizer.",
        "The test split is read once per chosen trial, after all choices are made. The means over seeds include the "
        "seed the learning rate was chosen on, so validation losses are slightly optimistic, for all optimizers alike.",
        "Step times, and with them the time axis of the plot, come from a separate phase in which the optimizers take "
        "turns on the same model, so that whatever else the machine does hits all alike. The clock of each trial is in "
        "results.json too.",
    ]


def _controls(spec: Spec) -> list[str]:
    """A sentence per optimizer that came with a control."""
    owners = [CONTENDERS[name] for name in spec.optimizers if CONTENDERS[name].control is not None]
    return [
        f"{owner.label} divides its momentum by F, which is at least lambda = {owner.options['damping']:g}. Where F is "
        "lambda its step is that of momentum SGD with learning rate lr / lambda. "
        f"{CONTENDERS[str(owner.control)].label} runs just this, with {owner.label}'s learning rates divided by lambda."
        for owner in owners
    ]


def _curvature(outcome: Outcome) -> list[Record]:
    """The trials whose F the page shows layer by layer: AdaFisher's, at the best learning rate, on the first seed."""
    best = {(row.optimizer, row.best_lr, outcome.spec.seeds[0]) for row in outcome.rows}
    return [r for r in outcome.records if r.curvature and (r.trial.optimizer, r.trial.lr, r.trial.seed) in best]


def _backends(outcome: Outcome, name: str) -> str:
    """The backends an optimizer's trials ran on, with the number of parameter tensors each took."""
    found = {
        (backend, tensors)
        for record in outcome.records
        if record.trial.optimizer == name
        for backend, tensors in record.backends.items()
    }
    return ", ".join(f"{backend} ({tensors} tensors)" for backend, tensors in sorted(found))


def _factor(spec: Spec) -> float:
    """The mean ratio of neighbouring learning rates of the baseline."""
    lrs = sorted(spec.lrs[spec.baseline])
    return round(math.exp(math.log(lrs[-1] / lrs[0]) / (len(lrs) - 1)), 3)
