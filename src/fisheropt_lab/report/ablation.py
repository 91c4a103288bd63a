"""curves.png of an ablation: what each value costs, in both tracks, and how it changes the choice of learning rate."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisheropt_lab.ablations import ABLATIONS, Ablation, Arm
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.report.curves import draw_sensitivity
from fisheropt_lab.report.style import COLOURS, MARKERS, save, tidy
from fisheropt_lab.summary import Row, Spread, Track
from fisheropt_lab.tasks import TASKS


def draw_ablation(outcome: Outcome, path: Path) -> None:
    """Draw and save the picture: every seed and their mean, the tuned and the drop-in track side by side."""
    ablation = ABLATIONS[outcome.spec.study]
    arms = ablation.arms(outcome.spec.preset == "quick", TASKS[outcome.spec.task].losses)
    on_axis = any(arm.x is not None for arm in arms.values())
    figure = Figure(figsize=(15, 5.4 if on_axis else 1.8 + 0.55 * len(arms)), layout="constrained")
    tuned, dropped, over_lr = figure.subplots(1, 3)
    for axes, name in ((tuned, "tuned"), (dropped, "drop-in")):
        if on_axis:
            _against_value(axes, outcome, ablation, arms, name)
        else:
            _list(axes, outcome, name, labels=axes is tuned)
    _same_scale(tuned, dropped, "y" if on_axis else "x")
    draw_sensitivity(over_lr, outcome)
    handles, labels = over_lr.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    save(figure, path)


def judged(outcome: Outcome, track: Track | None) -> Spread | None:
    """The results of a track by what judges: the test loss, or a metric."""
    if track is None:
        return None
    return track.metrics.get(outcome.spec.judge) if outcome.spec.judge else track.test


def _track(row: Row, name: str) -> Track | None:
    return row.tuned if name == "tuned" else row.drop_in


def _against_value(axes: Axes, outcome: Outcome, ablation: Ablation, arms: dict[str, Arm], name: str) -> None:
    rows = {row.key: row for row in outcome.rows}
    lines = list(dict.fromkeys(arm.line for arm in arms.values()))
    for i, line in enumerate(lines):
        colour, marker = COLOURS[i], MARKERS[i]
        mine = {key: arm for key, arm in arms.items() if arm.line == line}
        points = [
            (arm.x, spread)
            for key, arm in sorted(mine.items(), key=lambda item: item[1].x or 0.0)
            if arm.x is not None and (spread := judged(outcome, _track(rows[key], name))) is not None
        ]
        if points:
            _points(axes, points, outcome, colour, marker, line)
        for key, arm in mine.items():
            spread = judged(outcome, _track(rows[key], name))
            if arm.x is None and spread is not None:
                scale = outcome.judge.factor
                axes.axhspan(scale * spread.low, scale * spread.high, color=colour, alpha=0.15, linewidth=0)
                axes.axhline(scale * spread.mean, color=colour, linewidth=1.5, linestyle="--", label=arm.line)
    if ablation.logarithmic:
        axes.set_xscale("log")
    axes.set(title=_title(name, outcome), xlabel=ablation.axis, ylabel=_judge(outcome))
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _points(
    axes: Axes, points: list[tuple[float, Spread]], outcome: Outcome, colour: str, marker: str, label: str
) -> None:
    """Every seed faintly, their mean boldly."""
    scale = outcome.judge.factor
    for x, spread in points:
        axes.plot([x] * len(spread.values), [scale * v for v in spread.values], ".", color=colour, alpha=0.4)
    means = [scale * spread.mean for _, spread in points]
    axes.plot([x for x, _ in points], means, color=colour, marker=marker, linewidth=2, label=label)


def _list(axes: Axes, outcome: Outcome, name: str, labels: bool) -> None:
    """A line per arm: every seed faintly, their mean boldly, the first arm's mean as a rule to measure by."""
    scale = outcome.judge.factor
    for i, row in enumerate(outcome.rows):
        spread = judged(outcome, _track(row, name))
        colour = COLOURS[0] if i == 0 else COLOURS[1]
        if spread is None:
            continue
        axes.plot([scale * value for value in spread.values], [i] * len(spread.values), ".", color=colour, alpha=0.4)
        axes.plot(scale * spread.mean, i, "o", color=colour)
        if i == 0:
            axes.axvline(scale * spread.mean, color=colour, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(outcome.rows)), [row.label for row in outcome.rows] if labels else [])
    axes.set_ylim(len(outcome.rows) - 0.5, -0.5)
    axes.set(title=_title(name, outcome), xlabel=_judge(outcome))
    tidy(axes)


def _same_scale(first: Axes, second: Axes, axis: str) -> None:
    """One scale for both tracks, so that they can be held against each other."""
    limits = [getattr(axes, f"get_{axis}lim")() for axes in (first, second)]
    for axes in (first, second):
        getattr(axes, f"set_{axis}lim")(min(low for low, _ in limits), max(high for _, high in limits))


def _title(name: str, outcome: Outcome) -> str:
    if name == "tuned":
        return "Tuned: a learning rate of its own"
    return f"Drop-in: {outcome.rows[0].label}'s learning rate"


def _judge(outcome: Outcome) -> str:
    return f"{outcome.judge.name} ({outcome.judge.unit}), {len(outcome.spec.seeds)} seeds"
