"""curves.png of a comparison: loss against steps, against time, and against the learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fisheropt_lab.outcome import Outcome
from fisheropt_lab.report.style import logarithmic_if_wide, looks, lr_axis, save, tidy
from fisheropt_lab.summary import with_slack
from fisheropt_lab.tuning import lr_trials

Series = NDArray[np.float64]
OFF_SCALE = 1000.0  # times the lowest loss: nobody wants to see where such a training ended


def draw_curves(outcome: Outcome, path: Path) -> None:
    """Draw and save the picture; losses in the task's first unit."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    over_steps, over_time, over_lr = figure.subplots(1, 3)
    _loss_curves(over_steps, outcome, against_time=False)
    _loss_curves(over_time, outcome, against_time=True)
    draw_sensitivity(over_lr, outcome)
    handles, labels = over_lr.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 8), frameon=False)
    save(figure, path)


def _loss_curves(axes: Axes, outcome: Outcome, against_time: bool) -> None:
    """Validation loss (bold: mean over seeds, band: their range) over smoothed training loss (thin), tuned track.

    Time is the number of steps times the step time of the phase in which the optimizers take turns: the clock of the
    trials themselves tells more about what else the machine was doing.
    """
    early_losses, all_losses = [], []
    for row in outcome.rows:
        records = outcome.records(row.tuned.trials) if row.tuned else []
        if not records:
            continue
        colour, marker = looks(outcome)[row.key]
        window = max(1, outcome.spec.steps // 20)
        train = _over_seeds([_smooth(record.train_loss, window) for record in records]).mean(axis=0)
        length = min(len(record.train_loss) for record in records)
        unit = row.step_time.training_ms / 1e3 if against_time and row.step_time else 1  # of the axis, per step
        axis = unit * np.arange(1, length + 1)
        axes.plot(axis[len(axis) - len(train) :], train, color=colour, linewidth=1, alpha=0.55)

        losses = _over_seeds([np.array([e.loss for e in record.evaluations]) for record in records])
        if not losses.size:
            continue
        evaluated = np.array([e.step for e in records[0].evaluations])[: losses.shape[1]]
        axis = axis[evaluated - 1]
        axes.fill_between(axis, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(axis, losses.mean(axis=0), color=colour, marker=marker, markersize=5, linewidth=2)
        all_losses += losses.mean(axis=0).tolist()
        early_losses.append(losses.mean(axis=0)[: len(axis) // 10 + 1].min())
    if early_losses:  # the fall of the first tenth would squash everything that differs later
        axes.set_ylim(top=max(early_losses) * 1.02)
        logarithmic_if_wide(axes, all_losses)
    target = with_slack(outcome.choices[outcome.spec.baseline].loss)
    axes.axhline(target, color="0.4", linewidth=1, linestyle=":")
    if against_time:
        axes.set(title="Against wall-clock, tuned", xlabel="steps times step time (s), timed in turns")
    else:
        axes.set(title=f"Against steps, tuned (dotted: {outcome.rows[0].label}'s target)", xlabel="optimizer steps")
    axes.set_ylabel(f"loss ({outcome.units[0].name}): validation bold, training thin")
    tidy(axes)


def draw_sensitivity(axes: Axes, outcome: Outcome) -> None:
    """Final validation loss of the learning-rate search; a cross at the top diverged, or as good as."""
    spec = outcome.spec
    searched = {row.key: outcome.records(lr_trials(spec, row.key, row.lrs)) for row in outcome.rows}
    finished = [abs(r.validation_loss) for found in searched.values() for r in found if r.validation_loss is not None]
    off_scale = OFF_SCALE * min(finished, default=0.0)
    all_losses: list[float] = []
    for row in outcome.rows:
        colour, marker = looks(outcome)[row.key]
        records = searched[row.key]
        losses = {r.trial.lr: loss for r in records if (loss := r.validation_loss) is not None and loss <= off_scale}
        lrs = sorted(losses)
        all_losses += losses.values()
        axes.plot(
            lrs, [losses[lr] for lr in lrs], color=colour, marker=marker, markersize=6, linewidth=2, label=row.label
        )
        if row.tuned and row.tuned.lr in losses:
            axes.plot(row.tuned.lr, losses[row.tuned.lr], "o", markersize=15, fillstyle="none", color=colour)
        diverged = [r.trial.lr for r in records if r.trial.lr not in losses]
        at_top = axes.get_xaxis_transform()  # x in data, y from 0 to 1
        axes.plot(diverged, [0.97] * len(diverged), "x", color=colour, markersize=10, mew=2, transform=at_top)
    lr_axis(axes, [lr for row in outcome.rows for lr in row.lrs])
    logarithmic_if_wide(axes, all_losses)
    axes.set(title="Where each still works (best one circled)", xlabel="peak learning rate")
    axes.set_ylabel(f"final validation loss, tuning seed ({outcome.units[0].name})")
    tidy(axes)


def _over_seeds(series: list[Series]) -> Series:
    """(seeds, length): cut to the shortest, because a diverged trial ends early."""
    length = min(len(one) for one in series)
    return np.stack([one[:length] for one in series])


def _smooth(values: list[float], window: int) -> Series:
    """Running mean, (len(values) - window + 1,): each point looks back over `window` steps."""
    if len(values) < window:
        return np.array(values)
    return np.convolve(values, np.ones(window) / window, mode="valid")
