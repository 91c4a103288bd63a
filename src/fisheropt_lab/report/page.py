"""report.html: the whole study on one page that needs no other file."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fisheropt_lab.ablations import ABLATIONS
from fisheropt_lab.optimizers import contender
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.progress import describe
from fisheropt_lab.record import Exhibit, Record
from fisheropt_lab.report.table import columns, footnotes
from fisheropt_lab.spec import Entry, Spec


def render_page(outcome: Outcome, picture: Path) -> str:
    """HTML with the pictures inlined."""
    spec = outcome.spec
    environment = Environment(
        loader=PackageLoader("fisheropt_lab.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title(outcome),
        outcome=outcome,
        spec=spec,
        describe=describe,
        manifest=outcome.manifest,
        columns=columns(outcome),
        footnotes=footnotes(outcome),
        curvature=_curvature(outcome),
        exhibits=_exhibits(outcome),
        ablation=ABLATIONS.get(spec.study),
        protocol=protocol(spec, outcome.manifest["task_protocol"]),
        entries=[
            (entry, contender(entry.optimizer), _options(entry), _backends(outcome, entry), row)
            for entry, row in zip(spec.entries.values(), outcome.rows, strict=True)
        ],
        picture=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )


def title(outcome: Outcome) -> str:
    """What the study is about."""
    if outcome.spec.study in ABLATIONS:
        return ABLATIONS[outcome.spec.study].title
    labels = [row.label for row in outcome.rows]
    return f"{labels[0]} against {', '.join(labels[1:])}"


def protocol(spec: Spec, task_protocol: list[str]) -> list[str]:
    """How the numbers came about, a sentence each: first the task's own, then what all tasks share."""
    first = spec.entries[spec.baseline]
    knobs = (
        f" Then {spec.knob_values} other value{'s' if spec.knob_values > 1 else ''} of the weight decay at the best "
        "learning rate, and as many of beta2 (of the momentum, where there is no beta2) at the best of both."
        if spec.knob_values
        else " Nothing but the learning rate is tuned."
    )
    grid = (
        f"{len(first.lrs)} learning rates a factor of two apart; while the best of any lies at an edge, everyone gets "
        f"one more, up to {spec.most_lrs}: beyond the edge, or to widen the curve."
        if spec.most_lrs > len(first.lrs)
        else f"the {len(first.lrs)} learning rates that were asked for, and the grid is not extended."
    )
    return [
        *task_protocol,
        *spec.notes,
        f"Each trial runs {spec.steps} steps: the learning rate is warmed up linearly over {spec.warmup} steps and "
        f"then follows a cosine to zero; the gradient's global norm is clipped at {spec.grad_clip:g}, for all alike.",
        f"Tuning, on seed {spec.tuning_seed}, by the final validation loss, with the same number of trials for all: "
        f"{grid}{knobs}",
        "Everything chosen, and the target loss, is frozen before the first reported seed is trained. Reported seeds: "
        f"{', '.join(map(str, spec.seeds))}; the tuning seed is not among them.",
        f"Two tracks. Tuned: each at what its own tuning found. Drop-in: {first.label}'s tuned settings, only the "
        "optimizer replaced; a weight decay or beta2 goes along where both measure it in the same unit.",
        "A seed fixes the initial weights and the order of the batches; both are the same for all, so differences are "
        "taken seed by seed. Intervals are Student's at 95 %; one that reaches across zero reads “no difference seen”. "
        "They assume roughly normal differences, which so few seeds cannot show, and there is no correction for the "
        "number of comparisons on this page.",
        "The test split is read once per reported trial, when its schedule has ended. A trial that diverges is "
        "counted, and a track with one has no mean.",
        *_controls(spec),
        *(
            [
                "Step times, and with them the time axis of the plot, come from a separate phase in which the "
                "optimizers take turns on the same model, so that whatever else the machine does hits all alike."
            ]
            if spec.study == "compare"
            else []
        ),
    ]


def _controls(spec: Spec) -> list[str]:
    """A sentence per optimizer that came with a control."""
    kinds = [contender(entry.optimizer) for entry in spec.entries.values()]
    return [
        f"{owner.label} divides its momentum by F, which is at least lambda = {owner.options['damping']:g}. Where F is "
        "lambda its step is that of momentum SGD with learning rate lr / lambda. In the drop-in track "
        f"{contender(str(owner.control)).label} runs just this, at {owner.label}'s tuned learning rate."
        for owner in kinds
        if owner.control is not None
    ]


def _curvature(outcome: Outcome) -> list[Record]:
    """The trials whose F the page shows layer by layer: AdaFisher's, tuned, on the first reported seed."""
    first = [row.tuned.trials[0] for row in outcome.rows if row.tuned]
    return [record for record in outcome.records(first) if record.curvature]


def _exhibits(outcome: Outcome) -> list[tuple[str, tuple[Exhibit, ...]]]:
    """What the task shows of each entry, tuned, on the first reported seed."""
    found = []
    for row in outcome.rows:
        result = outcome.results.get(row.tuned.trials[0]) if row.tuned else None
        if result is not None and result.tested is not None and result.tested.exhibits:
            found.append((row.label, result.tested.exhibits))
    return found


def _options(entry: Entry) -> str:
    given = contender(entry.optimizer).options | dict(entry.options) | dict(entry.settings)
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "none"


def _backends(outcome: Outcome, entry: Entry) -> str:
    """The backends an optimizer's trials ran on, with the number of parameter tensors each took."""
    found = {
        (backend, tensors)
        for trial, result in outcome.results.items()
        if trial.optimizer == entry.optimizer
        for backend, tensors in result.record.backends.items()
    }
    return ", ".join(f"{backend} ({tensors} tensors)" for backend, tensors in sorted(found))
