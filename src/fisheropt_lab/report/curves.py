"""curves.png: loss against steps, against time, and against the learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from fisheropt_lab.files import PARTIAL
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.record import Record
from fisheropt_lab.summary import Row

# Okabe and Ito's palette, told apart by every kind of colour vision; markers differ too. Fixed per optimizer, so that
# two reports can be held side by side.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
COLOURS = dict(zip(CONTENDERS, (*OKABE_ITO, "#882255", "#999933"), strict=True))
MARKERS = dict(zip(CONTENDERS, "os^Dv*XPph", strict=True))
Series = NDArray[np.float64]


def draw_curves(outcome: Outcome, path: Path) -> None:
    """Draw and save the picture; losses in the task's first unit."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    over_steps, over_time, over_lr = figure.subplots(1, 3)
    _loss_curves(over_steps, outcome, against_time=False)
    _loss_curves(over_time, outcome, against_time=True)
    _lr_curves(over_lr, outcome)
    handles, labels = over_lr.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    partial = path.with_name(path.name + PARTIAL)
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)


def _loss_curves(axes: Axes, outcome: Outcome, against_time: bool) -> None:
    """Validation loss (bold: mean over seeds, band: their range) over smoothed training loss (thin).

    Time is the number of steps times the step time of the phase in which the optimizers take turns: the clock of the
    trials themselves tells more about what else the machine was doing.
    """
    early_losses, all_losses = [], []
    for row in outcome.rows:
        records = _at_best(outcome, row)
        if not records:
            continue
        colour = COLOURS[row.optimizer]
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
        axes.plot(axis, losses.mean(axis=0), color=colour, marker=MARKERS[row.optimizer], markersize=5, linewidth=2)
        all_losses += losses.mean(axis=0).tolist()
        early_losses.append(losses.mean(axis=0)[: len(axis) // 10 + 1].min())
    if early_losses:  # the fall of the first tenth would squash everything that differs later
        axes.set_ylim(top=max(early_losses) * 1.02)
        _logarithmic_if_wide(axes, all_losses)
    if against_time:
        axes.set(title="Against wall-clock", xlabel="steps times step time (s), timed in turns")
    else:
        axes.set(title="Against steps", xlabel="optimizer steps")
    axes.set_ylabel(f"loss ({outcome.units[0].name}): validation bold, training thin")
    _tidy(axes)


def _lr_curves(axes: Axes, outcome: Outcome) -> None:
    """Final validation loss of the learning-rate search; a diverged trial is a cross at the top."""
    search_seed = outcome.spec.seeds[0]
    all_losses: list[float] = []
    for row in outcome.rows:
        colour, marker = COLOURS[row.optimizer], MARKERS[row.optimizer]
        mine = [r for r in outcome.records if (r.trial.optimizer, r.trial.seed) == (row.optimizer, search_seed)]
        losses = {r.trial.lr: r.validation_loss for r in mine if r.validation_loss is not None}
        lrs = sorted(losses)
        all_losses += losses.values()
        axes.plot(
            lrs, [losses[lr] for lr in lrs], color=colour, marker=marker, markersize=7, linewidth=2, label=row.label
        )
        if row.best_lr in losses:
            axes.plot(row.best_lr, losses[row.best_lr], "o", markersize=15, fillstyle="none", color=colour)
        diverged = [r.trial.lr for r in mine if r.validation_loss is None]
        at_top = axes.get_xaxis_transform()  # x in data, y from 0 to 1
        axes.plot(diverged, [0.97] * len(diverged), "x", color=colour, markersize=10, mew=2, transform=at_top)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_apart(sorted({lr for row in outcome.rows for lr in row.lrs})))
    _logarithmic_if_wide(axes, all_losses)
    axes.tick_params(axis="x", rotation=45)
    axes.set(title="Learning-rate search (best one circled)", xlabel="peak learning rate")
    axes.set_ylabel(f"final validation loss, seed {search_seed} ({outcome.units[0].name})")
    _tidy(axes)


def _logarithmic_if_wide(axes: Axes, losses: list[float]) -> None:
    """Losses over more than a decade are drawn on a logarithmic axis, where small ones can still be told apart."""
    if losses and max(losses) > 10 * min(losses) > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8 * min(losses))


def _apart(lrs: list[float]) -> list[float]:
    """As many of these, ascending, as a logarithmic axis has room for labels."""
    room = (lrs[-1] / lrs[0]) ** (1 / 16)
    kept = lrs[:1]
    for lr in lrs[1:]:
        if lr >= room * kept[-1]:
            kept.append(lr)
    return kept


def _at_best(outcome: Outcome, row: Row) -> list[Record]:
    """The trials of an optimizer at its best learning rate, one per seed."""
    return [r for r in outcome.records if (r.trial.optimizer, r.trial.lr) == (row.optimizer, row.best_lr)]


def _over_seeds(series: list[Series]) -> Series:
    """(seeds, length): cut to the shortest, because a diverged trial ends early."""
    length = min(len(one) for one in series)
    return np.stack([one[:length] for one in series])


def _smooth(values: list[float], window: int) -> Series:
    """Running mean, (len(values) - window + 1,): each point looks back over `window` steps."""
    if len(values) < window:
        return np.array(values)
    return np.convolve(values, np.ones(window) / window, mode="valid")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
