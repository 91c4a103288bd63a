"""diagnosis.png: entries of f against those of the Fisher information, tensors, and the course of training."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fisheropt_lab.diagnose.run import Run
from fisheropt_lab.files import PARTIAL
from fisheropt_lab.optimizers import contender

FISHER, EMPIRICAL, FRESH, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito's


def draw_picture(run: Run, path: Path) -> None:
    """Draw and save the picture."""
    figure = Figure(figsize=(15, 10), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(6, 3.6))
    entries, tensors, course = upper.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    clip, shares, spectrum = lower.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    label = contender(run.plan.optimizer).label
    _entries(entries, run, label)
    _tensors(tensors, run)
    _course(course, run)
    _clip(clip, run)
    _shares(shares, run)
    _spectrum(spectrum, run)
    partial = path.with_name(path.name + PARTIAL)
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)


def _entries(axes: Axes, run: Run, label: str) -> None:
    """Every point an entry: what f says against what F says."""
    look = run.looks[-1]
    held, fisher = (np.array(look.drawn[name]) for name in ("held", "fisher"))
    shown = (held > 0) & (fisher > 0)
    axes.loglog(fisher[shown], held[shown], ".", color=FISHER, markersize=3, alpha=0.35, rasterized=True)
    low, high = (np.percentile(np.concatenate([held[shown], fisher[shown]]), q) for q in (0.1, 99.95))
    axes.plot([low, high], [low, high], color=GREY, linewidth=1)
    axes.annotate("equal", (high, high), xytext=(4, -16), textcoords="offset points", color=GREY, ha="center")
    axes.set(xlim=(low / 2, high * 2), ylim=(low / 2, high * 2))
    axes.set(title=f"Single entries, after {look.step} steps", xlabel=f"Fisher information ({look.estimator})")
    axes.set_ylabel(f"B T² f of {label}")
    left_out = 1 - shown.mean()
    if left_out > 0.005:
        axes.text(0.03, 0.97, f"{left_out:.0%} are zero in one of them", transform=axes.transAxes, va="top", color=GREY)
    _tidy(axes)


def _tensors(axes: Axes, run: Run) -> None:
    """The traces of every tensor, relative to that of F."""
    layers = run.looks[-1].layers
    at = np.arange(len(layers))[::-1]
    axes.axvline(1, color=GREY, linewidth=1)
    axes.plot([x.fisher.trace_ratio for x in layers], at, "o", color=FISHER, label="B T² f / F")
    axes.plot([x.empirical_and_fisher.trace_ratio for x in layers], at, "s", color=EMPIRICAL, label="empirical / F")
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_yticks(at, [_short(x.name) for x in layers], fontsize=max(6, 9 - len(layers) // 12))
    axes.set(title="Traces of the tensors, F = 1", xlabel="trace ratio")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    _tidy(axes)


def _course(axes: Axes, run: Run) -> None:
    """How all of it changes during training."""
    steps = [look.step for look in run.looks]
    for kind, colour, marker, label in (
        ("fisher", FISHER, "o", "f and F"),
        ("empirical_and_fisher", EMPIRICAL, "s", "empirical and F"),
        ("fresh", FRESH, "^", "f and fresh squares"),
    ):
        found = [look.total[kind] for look in run.looks]
        axes.plot(steps, [a.cosine for a in found], color=colour, marker=marker, label=f"{label}: cosine")
        ranks = [a.rank_correlation for a in found]
        axes.plot(steps, ranks, color=colour, marker=marker, fillstyle="none", linestyle=":", label=f"{label}: ranks")
    halves = [look.halves.cosine for look in run.looks]
    axes.plot(steps, halves, color=GREY, marker="x", label="two halves of fresh squares: cosine")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(ylim=(0, 1.02), title="All parameters, during training", xlabel="optimizer steps", ylabel="agreement")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    _tidy(axes)


def _clip(axes: Axes, run: Run) -> None:
    """The rms of the natural gradient over its bound: the tensors' range and median."""
    lines = [(row["step"], [x["clip"] for x in row["parameters"].values()]) for row in run.monitored]
    axes.set(title="The clip, tensor by tensor", xlabel="optimizer steps", ylabel="rms of the natural gradient / c")
    axes.axhline(1, color=GREY, linewidth=1)
    if lines[0][1][0] is None:
        axes.text(0.5, 0.5, "this optimizer has none", transform=axes.transAxes, ha="center", color=GREY)
    else:
        steps = [step for step, _ in lines]
        axes.fill_between(steps, [min(x) for _, x in lines], [max(x) for _, x in lines], color=FISHER, alpha=0.2, lw=0)
        axes.plot(steps, [median(x) for _, x in lines], color=FISHER)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        axes.annotate(
            "at work above", (steps[-1], 1), xytext=(0, 4), textcoords="offset points", ha="right", color=GREY
        )
    _tidy(axes)


def _shares(axes: Axes, run: Run) -> None:
    steps = [row["step"] for row in run.monitored]
    for name, colour, label in (
        ("epsilon_share", EMPIRICAL, "entries where the epsilon rules"),
        ("decay_share", FRESH, "weight decay in a step"),
    ):
        values = [row["total"][name] for row in run.monitored]
        if values[0] is not None:
            axes.plot(steps, [100 * value for value in values], color=colour, label=label)
    axes.set(title="Epsilon and weight decay", xlabel="optimizer steps", ylabel="%", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _spectrum(axes: Axes, run: Run) -> None:
    """Quantiles of f in the largest tensor."""
    name = max(run.monitored[0]["parameters"], key=lambda name: run.monitored[0]["parameters"][name]["entries"])
    steps = [row["step"] for row in run.monitored]
    quantiles = np.array([row["parameters"][name]["fisher_quantiles"] for row in run.monitored])
    quantiles[quantiles <= 0] = quantiles[quantiles > 0].min() / 3  # no gradient was ever seen: off the scale
    axes.fill_between(steps, quantiles[:, 0], quantiles[:, -1], color=FISHER, alpha=0.15, lw=0, label="1 % to 99 %")
    axes.fill_between(steps, quantiles[:, 1], quantiles[:, -2], color=FISHER, alpha=0.3, lw=0, label="25 % to 75 %")
    axes.plot(steps, quantiles[:, 2], color=FISHER, label="median")
    axes.set_yscale("log")
    axes.set(title=f"Spectrum of f in {name}", xlabel="optimizer steps", ylabel="f, not scaled by B")
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _plain(axis: Axis) -> None:
    """1, 2 and 5 of every decade, as they are."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name.removesuffix(".weight") if len(name) > 24 else name


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
