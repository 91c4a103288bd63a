"""curves.png of one training run: the losses, and what the optimizer was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fisheropt_lab.files import PARTIAL
from fisheropt_lab.report.style import OKABE_ITO
from fisheropt_lab.train.folder import Line

BLUE, VERMILION, GREEN = OKABE_ITO[:3]
HIDDEN = 0.05  # of the run: its first steps, whose loss would squash everything that differs later


def draw_run(lines: list[Line], title: str, unit: str, path: Path) -> None:
    """Draw and save the picture. ``lines`` are those of metrics.jsonl, at least one."""
    steps = np.array([line["step"] for line in lines])
    losses = np.array([line["loss"] for line in lines])
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)

    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(steps, losses, color=BLUE, linewidth=0.6, alpha=0.35)
    left.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.6, label="training")
    evaluated = [line for line in lines if "validation" in line]
    if evaluated:
        points = [line["step"] for line in evaluated], [line["validation"] for line in evaluated]
        left.plot(*points, "o-", color=VERMILION, markersize=4, linewidth=1.6, label="validation")
    shown = losses[int(HIDDEN * len(losses)) :]
    left.set_ylim(bottom=0.98 * min([*shown, *(line["validation"] for line in evaluated)]), top=1.02 * max(shown))
    left.set(title="Loss", xlabel="optimizer steps", ylabel=unit)
    left.legend(frameon=False)

    right.plot(steps, [line["grad_norm"] for line in lines], color=GREEN, linewidth=0.8)
    right.set(title="Norm of the gradient before clipping, and learning rate", xlabel="optimizer steps", yscale="log")
    right.set_ylabel("L2 norm", color=GREEN)
    rate = right.twinx()
    rate.plot(steps, [line["lr"] for line in lines], color="black", linewidth=1.2)
    rate.set_ylabel("learning rate (black)")
    rate.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
    for axes in (left, right, rate):
        axes.spines[["top"]].set_visible(False)
    partial = path.with_name(path.name + PARTIAL)
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
