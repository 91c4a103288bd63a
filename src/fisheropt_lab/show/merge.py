"""Two models fine-tuned on different halves of the data, merged by Fisher information and by plain averaging."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from torch import nn

from fisheropt.fisher import fisher_merge
from fisheropt_lab.report.style import OKABE_ITO
from fisheropt_lab.show.demonstration import (
    Demonstration,
    Run,
    Table,
    Tick,
    difference_text,
    mean_text,
    tidy_axes,
)
from fisheropt_lab.show.digit_nets import (
    ESTIMATORS,
    LR,
    NEW,
    OLD,
    UNIFORM,
    accuracy,
    classifier,
    digits,
    fishers,
    train,
    twin,
    uniform,
)

BASE_STEPS, TUNING_STEPS = 40, 150
TUNING_LR = LR / 5
COEFFICIENTS = tuple(i / 10 for i in range(1, 10))  # of the model of the old half
LABELS = {UNIFORM: "plain average", **ESTIMATORS}


def scores(model: nn.Module) -> dict[str, float]:
    """Accuracy on all ten digits, in per cent."""
    return {part: accuracy(model, digits(part)) for part in ("validation", "test")}


def run(seed: int, tick: Tick) -> Run:
    base = classifier(seed, classes=10)
    train(base, digits("train"), BASE_STEPS, seed=1000 + seed)
    models, diagonals = [], []
    for half in (OLD, NEW):
        model = twin(base)
        optimizer = train(model, digits("train", half), TUNING_STEPS, seed=2000 + seed, lr=TUNING_LR)
        models.append(model)
        diagonals.append({UNIFORM: uniform(model), **fishers(model, digits("train", half), optimizer)})
    together = twin(base)
    train(together, digits("train"), 2 * TUNING_STEPS, seed=2000 + seed, lr=TUNING_LR)
    tick("two models")
    methods: dict[str, dict[str, dict[str, float]]] = {}
    for name in LABELS:
        methods[name] = {}
        for c in COEFFICIENTS:
            merged = twin(base)
            merged.load_state_dict(fisher_merge(models, [d[name] for d in diagonals], [c, 1 - c]))
            methods[name][f"{c:g}"] = scores(merged)
        tick(LABELS[name])
    return {
        "seed": seed,
        "base": scores(base),
        "old": scores(models[OLD]),
        "new": scores(models[NEW]),
        "together": scores(together),
        "methods": methods,
    }


def best_coefficient(runs: Sequence[Run], method: str) -> str:
    """By validation accuracy over the seeds; of equals the one nearer to one half."""
    return max(
        (f"{c:g}" for c in COEFFICIENTS),
        key=lambda c: (fmean(run["methods"][method][c]["validation"] for run in runs), -abs(float(c) - 0.5)),
    )


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    def tests(method: str, coefficient: str) -> list[float]:
        return [run["methods"][method][coefficient]["test"] for run in runs]

    plain = tests(UNIFORM, best_coefficient(runs, UNIFORM))
    rows: list[tuple[str, ...]] = []
    for label, key in (
        ("before fine-tuning", "base"),
        ("fine-tuned on 0 to 4", "old"),
        ("fine-tuned on 5 to 9", "new"),
        ("fine-tuned on all", "together"),
    ):
        found = [run[key]["test"] for run in runs]
        rows.append((label, "", "", mean_text(found), difference_text(found, plain)))
    for name, label in LABELS.items():
        c = best_coefficient(runs, name)
        found = tests(name, c)
        against = "" if name == UNIFORM else difference_text(found, plain)
        rows.append((label, mean_text(tests(name, "0.5")), c, mean_text(found), against))
    return (
        Table(
            "Test accuracy on all ten digits, per cent",
            ("model", "at 0.5", "coefficient", "at the coefficient", "against the plain average (95 %)"),
            tuple(rows),
        ),
    )


def draw(runs: Sequence[Run]) -> Figure:
    """Accuracy against the coefficient, with the models that were merged at both ends."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    ends = [fmean(run[key]["test"] for run in runs) for key in ("new", "old")]
    for colour, marker, name in zip(OKABE_ITO, "osD^v*", LABELS, strict=False):
        means = [fmean(run["methods"][name][f"{c:g}"]["test"] for run in runs) for c in COEFFICIENTS]
        axes.plot([0, *COEFFICIENTS, 1], [ends[0], *means, ends[1]], color=colour, marker=marker, label=LABELS[name])
    for key, label in (("base", "before fine-tuning"), ("together", "fine-tuned on all")):
        height = fmean(run[key]["test"] for run in runs)
        axes.axhline(height, color="black", linewidth=1, linestyle=":" if key == "base" else "--")
        axes.annotate(label, (0, height), xytext=(0, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="coefficient of the model of digits 0 to 4", ylabel="test accuracy, all ten digits, %")
    axes.set_title(f"Merging two models (mean over {len(runs)} seeds)")
    tidy_axes(axes)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    return figure


MERGE_DEMONSTRATION = Demonstration(
    name="merge",
    about="two models fine-tuned on two halves of the digits, merged by Fisher and by plain averaging",
    protocol=(
        "Data: the 1,797 digits of scikit-learn, 60 % train, 20 % validation, 20 % test; ten classes.",
        f"Model: two hidden layers of 64, trained for {BASE_STEPS} steps on all digits, then {TUNING_STEPS} steps on 0 "
        f"to 4 and, from the same weights, on 5 to 9. FAdam, lr {LR:g}, then {TUNING_LR:g}, batches of 32.",
        "Every way of merging gets the same nine coefficients; the best by validation accuracy over the seeds is "
        "reported on the test part, and 0.5 beside it.",
    ),
    seeds=5,
    parts=1 + len(LABELS),
    run=run,
    tables=tables,
    draw=draw,
)
