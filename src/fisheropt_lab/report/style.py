"""What all pictures share: colours, axes, and how they are saved."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fisheropt_lab.files import PARTIAL
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.outcome import Outcome

# Okabe and Ito's palette, told apart by every kind of colour vision, and a few of Paul Tol's; markers differ too.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
MORE = ("#882255", "#999933", "#332288", "#44AA99", "#AA4499", "#661100", "#117733", "#88CCEE", "#DDCC77", "#AA4466")
COLOURS = OKABE_ITO + MORE
MARKERS = "os^Dv*XPph<>d8H1234"
FIXED = {name: i for i, name in enumerate(CONTENDERS)}  # so that two reports can be held side by side


def looks(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """(colour, marker) by entry's key: fixed per optimizer in a comparison, in order in an ablation."""
    keys = list(outcome.spec.entries)
    places = {key: FIXED.get(key, i) if outcome.spec.study == "compare" else i for i, key in enumerate(keys)}
    return {key: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for key, i in places.items()}


def lr_axis(axes: Axes, lrs: list[float]) -> None:
    """A logarithmic axis of learning rates, ticked where they were tried as far as there is room."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_apart(sorted(set(lrs))))
    axes.tick_params(axis="x", rotation=45)


def logarithmic_if_wide(axes: Axes, losses: list[float]) -> None:
    """Losses over more than a decade are drawn on a logarithmic axis, where small ones can still be told apart."""
    if losses and max(losses) > 10 * min(losses) > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8 * min(losses))


def tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """In one move."""
    partial = path.with_name(path.name + PARTIAL)
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)


def _apart(lrs: list[float]) -> list[float]:
    """As many of these, ascending, as a logarithmic axis has room for labels."""
    room = (lrs[-1] / lrs[0]) ** (1 / 16)
    kept = lrs[:1]
    for lr in lrs[1:]:
        if lr >= room * kept[-1]:
            kept.append(lr)
    return kept
