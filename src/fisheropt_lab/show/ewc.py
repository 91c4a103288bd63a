"""Two tasks one after the other: what elastic weight consolidation saves of the first, by where its F comes from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from torch import Tensor, nn

from fisheropt.fisher import EWC
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
    NEW,
    OLD,
    UNIFORM,
    Data,
    Fisher,
    accuracy,
    classifier,
    digits,
    fishers,
    of_mean_one,
    trace,
    train,
    twin,
    uniform,
)

STEPS = 300  # of each task
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # on F of mean one
DECOUPLED = ("exact", "fadam", UNIFORM)  # which are also applied after the step
LABELS = {UNIFORM: "uniform (no Fisher)", **ESTIMATORS}


def task(part: str, half: int) -> Data:
    """A half as a task of five classes: the digit modulo 5."""
    pixels, labels = digits(part, half)
    return pixels, labels % 5


def both(part: str) -> Data:
    pixels, labels = digits(part)
    return pixels, labels % 5


def scores(model: nn.Module) -> dict[str, list[float]]:
    """Accuracy on the old half and on the new one, in per cent."""
    return {part: [accuracy(model, task(part, half)) for half in (OLD, NEW)] for part in ("validation", "test")}


def run(seed: int, tick: Tick) -> Run:
    """All methods and strengths from one trained model."""
    first = classifier(seed, classes=5)
    optimizer = train(first, task("train", OLD), STEPS, seed=1000 + seed)
    diagonals: dict[str, Fisher] = {UNIFORM: uniform(first), **fishers(first, task("train", OLD), optimizer)}
    together = classifier(seed, classes=5)
    train(together, both("train"), 2 * STEPS, seed=1000 + seed)
    naive = twin(first)
    train(naive, task("train", NEW), STEPS, seed=2000 + seed)
    tick("the first task")
    methods: dict[str, dict[str, dict[str, list[float]]]] = {}
    for way, names in (("loss", tuple(diagonals)), ("step", DECOUPLED)):
        for name in names:
            fisher = of_mean_one(diagonals[name])
            methods[f"{name}, {way}"] = {
                f"{strength:g}": scores(_second_task(first, fisher, strength, way, seed)) for strength in STRENGTHS
            }
            tick(f"{LABELS[name]}, penalty in the {way}")
    return {
        "seed": seed,
        "first": scores(first),
        "naive": scores(naive),
        "together": scores(together),
        "traces": {name: trace(diagonals[name]) for name in ESTIMATORS},
        "methods": methods,
    }


def _second_task(first: nn.Module, fisher: dict[str, Tensor], strength: float, way: str, seed: int) -> nn.Module:
    model = twin(first)
    ewc = EWC(model, fisher, strength)
    if way == "loss":
        train(model, task("train", NEW), STEPS, seed=2000 + seed, extra_loss=ewc.penalty)
    else:
        train(model, task("train", NEW), STEPS, seed=2000 + seed, after_step=ewc.apply_grads_)
    return model


def best_strength(runs: Sequence[Run], method: str) -> str:
    """By the mean of both halves on validation, over the seeds: the same rule for every method."""
    return max(
        (f"{s:g}" for s in STRENGTHS),
        key=lambda s: fmean(fmean(run["methods"][method][s]["validation"]) for run in runs),
    )


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    def halves(found: Sequence[dict[str, list[float]]]) -> tuple[list[float], list[float], list[float]]:
        tests = [one["test"] for one in found]
        return [t[OLD] for t in tests], [t[NEW] for t in tests], [fmean(t) for t in tests]

    control = "uniform, loss"
    at_control = halves([run["methods"][control][best_strength(runs, control)] for run in runs])[2]
    rows = []
    for label, key in (("nothing is held", "naive"), ("both halves at once", "together")):
        old, new, mean = halves([run[key] for run in runs])
        rows.append((label, "", mean_text(old), mean_text(new), mean_text(mean), difference_text(mean, at_control)))
    for method in runs[0]["methods"]:
        name, _, way = method.partition(", ")
        strength = best_strength(runs, method)
        old, new, mean = halves([run["methods"][method][strength] for run in runs])
        against = "" if method == control else difference_text(mean, at_control)
        shown = LABELS[name] + (", after the step" if way == "step" else "")
        rows.append((shown, strength, mean_text(old), mean_text(new), mean_text(mean), against))
    traces = [run["traces"] for run in runs]
    return (
        Table(
            "Test accuracy after both tasks, per cent",
            ("Fisher", "strength", "old half", "new half", "mean", "mean, against uniform (95 %)"),
            tuple(rows),
        ),
        Table(
            "Trace of the Fisher diagonal after the first task",
            ("estimator", *(LABELS[name] for name in ESTIMATORS)),
            (("trace", *(f"{fmean(t[name] for t in traces):.3g}" for name in ESTIMATORS)),),
        ),
    )


def draw(runs: Sequence[Run]) -> Figure:
    """Left: what is kept against what is learned as the strength grows. Right: the mean of both."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    trade, mean = figure.subplots(1, 2)
    strengths = [f"{s:g}" for s in STRENGTHS]
    for colour, marker, name in zip(OKABE_ITO, "osD^v*", LABELS, strict=False):
        found = [
            [fmean(run["methods"][f"{name}, loss"][s]["test"][h] for run in runs) for s in strengths] for h in (0, 1)
        ]
        trade.plot(*found, color=colour, marker=marker, label=LABELS[name])
        mean.plot(STRENGTHS, [fmean(pair) for pair in zip(*found, strict=True)], color=colour, marker=marker)
    for key, marker, label in (("naive", "X", "nothing is held"), ("together", "P", "both halves at once")):
        x, y = (fmean(run[key]["test"][half] for run in runs) for half in (OLD, NEW))
        trade.plot(x, y, marker, color="black", markersize=10, linestyle="none", label=label)
        mean.axhline((x + y) / 2, color="black", linewidth=1, linestyle=":" if key == "naive" else "--")
        mean.annotate(label, (STRENGTHS[0], (x + y) / 2), xytext=(0, 4), textcoords="offset points", fontsize=9)
    trade.set(xlabel="test accuracy on the old half, %", ylabel="test accuracy on the new half, %")
    trade.set_title("Keeping and learning: the strength grows downwards")
    mean.set(xscale="log", xlabel="strength, on F of mean one", ylabel="test accuracy, mean of both halves, %")
    mean.set_title(f"Against the strength (mean over {len(runs)} seeds)")
    for axes in (trade, mean):
        tidy_axes(axes)
    handles, labels = trade.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


EWC_DEMONSTRATION = Demonstration(
    name="ewc",
    about="two halves of the digits learned one after the other, with EWC from every estimator",
    protocol=(
        "Data: the 1,797 digits of scikit-learn, 60 % train, 20 % validation, 20 % test. First task: digits 0 to 4, "
        "second: 5 to 9; a class is the digit modulo 5, so both tasks use the same five outputs and nothing tells the "
        "model which half an image is from.",
        f"Model: two hidden layers of 64. FAdam, lr 0.005, batches of 32, {STEPS} steps per task.",
        "Every Fisher diagonal is scaled to mean one, and gets the same six strengths; the best by the mean validation "
        "accuracy of both halves over the seeds is reported on the test part.",
        "uniform is the control: F = 1 for every parameter, a plain pull to the old weights.",
    ),
    seeds=5,
    parts=1 + len(LABELS) + len(DECOUPLED),
    run=run,
    tables=tables,
    draw=draw,
)
