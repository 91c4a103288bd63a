"""The table, once as columns of text, and from these for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from textwrap import wrap

from rich import box
from rich.table import Table

from fisheropt_lab.intervals import CLAIM_SEEDS
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.summary import TARGET_SLACK, WORKS_WITHIN, Reach, Row, Spread, Track
from fisheropt_lab.tasks import Metric, Unit
from fisheropt_lab.verdict import interval

NARROW = 9  # characters, of a heading over columns of several kinds
NARROWER = ("Knobs", "Works at lr", "At equal time")  # columns that a terminal has no room for
NOTHING = "-"  # a number that does not exist, because trials diverged or nobody asked


@dataclass(frozen=True)
class Column:
    """A heading in two parts, and a cell per entry."""

    what: str
    unit: str
    cells: tuple[str, ...]
    stack: str = ""  # the columns of a stack share one column of the terminal; by default those of one `what` do

    @property
    def heading(self) -> str:
        return f"{self.what} ({self.unit})" if self.unit else self.what


def columns(outcome: Outcome) -> list[Column]:
    """Every column, cells in the order of the rows."""
    rows, units = outcome.rows, outcome.units
    seeds = len(outcome.spec.seeds)
    first = rows[0].label

    def column(what: str, unit: str, cell: Callable[[Row], str]) -> Column:
        return Column(what, unit, tuple(cell(row) for row in rows))

    losses = [] if outcome.spec.judge else list(units)
    unit = f"{outcome.judge.name}, {outcome.judge.unit}, 95 %"
    found = [
        column("Optimizer", "", lambda row: row.label),
        replace(column("lr", "", _lr), stack="Optimizer"),
        replace(column("Knobs", "", _knobs), stack="Optimizer"),
        replace(column("Works at lr", "", _works), stack="Optimizer"),
        *(column("Test, tuned", one.name, lambda row, one=one: _loss(row.tuned, one)) for one in losses),
        *(column("Test, tuned", f"{m.name} {m.unit}", lambda row, m=m: _metric(row.tuned, m)) for m in outcome.metrics),
        replace(column(f"To {first}, tuned", unit, lambda row: _difference(outcome, row.tuned, row)), stack="To"),
        replace(column(f"To {first}, drop-in", unit, lambda row: _difference(outcome, row.drop_in, row)), stack="To"),
    ]
    if not outcome.spec.judge:
        found.append(column("Steps to target", "", lambda row: _reach(row.tuned and row.tuned.reach, seeds)))
    if any(row.step_time for row in rows):
        found += [
            column("At equal time", units[0].name, lambda row: _number(row.tuned and row.tuned.at_equal_time, 4)),
            column("Step time", "optimizer ms", lambda row: _number(row.step_time and row.step_time.optimizer_ms, 2)),
            column("Step time", "training ms", lambda row: _number(row.step_time and row.step_time.training_ms, 1)),
        ]
    found.append(column("State", "B/param", lambda row: _number(row.state_bytes_per_parameter, 2)))
    found += _curvature(rows)
    costs = ("Step time", "State", "F near lambda")
    return [replace(one, stack="Cost") if one.what in costs else one for one in found]


def footnotes(outcome: Outcome, left_out: tuple[str, ...] = ()) -> list[str]:
    """What the table needs to be read right, apart from columns that are left out."""
    spec, rows = outcome.spec, outcome.rows
    seeds, first = len(spec.seeds), outcome.rows[0].label
    notes = [
        f"test: mean ± sample standard deviation over {seeds} fresh seeds" if seeds > 1 else "one seed, so no spread",
        f"differences to {first}: mean over seeds, paired, with Student's 95 % interval"
        + ("" if seeds >= CLAIM_SEEDS else f"; {seeds} seeds support no claim"),
        f"chosen on seed {spec.tuning_seed} by validation loss alone",
    ]
    if "Works at lr" not in left_out:
        notes.append(f"works at lr: those around the best whose loss is within {100 * WORKS_WITHIN:.0f} % of its")
    if not spec.judge:
        notes.append(
            f"steps to target: median over seeds until the first evaluation at or below the tuned {first}'s validation "
            f"loss on the tuning seed plus {100 * TARGET_SLACK:.0f} %, evaluated every {spec.eval_every} of "
            f"{spec.steps} steps"
        )
    if any(row.step_time for row in rows):
        if "At equal time" not in left_out:
            notes.append(
                f"at equal time: validation loss when {first} has ended, by the step times; the others' schedules go on"
            )
        notes.append("times: medians, optimizers taking turns")
    if any(row.near_damping for row in rows):
        notes.append(
            "F near lambda: within 10 % of it when training ended, where AdaFisher is momentum SGD; AdaFisher's times "
            "are means over a period of factor updates"
        )
    if any(0 < row.tuned.reach.reached < seeds for row in rows if row.tuned) and not spec.judge:
        notes.append(f"(k/{seeds}): only k seeds got there, and the median counts the others as infinite")
    if any(row.edge for row in rows):
        notes.append("* the best learning rate is at the edge of the grid")
    notes += [f"{row.label}: {row.diverged} of {row.trials} tuning trials diverged" for row in rows if row.diverged]
    for name in ("tuned", "drop_in"):
        notes += [
            f"{row.label}, {name.replace('_', '-')}: {track.diverged} of {seeds} seeds diverged"
            for row in rows
            if (track := getattr(row, name)) is not None and track.diverged
        ]
    return notes


def markdown_table(outcome: Outcome) -> str:
    """The table and its footnotes in Markdown."""
    cols = columns(outcome)
    lines = [
        "| " + " | ".join(column.heading for column in cols) + " |",
        "|" + "|".join([" :-- "] + [" --: "] * (len(cols) - 1)) + "|",
        *("| " + " | ".join(column.cells[i] for column in cols) + " |" for i in range(len(outcome.rows))),
    ]
    return "\n".join([*lines, "", "; ".join(footnotes(outcome)).replace("*", "\\*") + "."])


def terminal_table(outcome: Outcome) -> Table:
    """The table for a terminal; columns that belong together are stacked to save width."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="; ".join(footnotes(outcome, NARROWER)) + ".",
        caption_justify="left",
    )
    stacks: dict[str, list[Column]] = {}
    for column in columns(outcome):
        if column.what not in NARROWER:
            stacks.setdefault(column.stack or column.what, []).append(column)
    for what, stack in stacks.items():
        units = [column.unit for column in stack]
        if what == "To":
            heading = "\n".join(line for column in stack for line in wrap(column.what, 18))
        elif any(column.what != what for column in stack):
            heading = "\n".join(line for column in stack for line in wrap(f"{column.what} {column.unit}", NARROW))
        else:
            heading = "\n".join([what, *units] if len(units) > 1 else f"{what} {units[0]}".split())
        one_line = what.startswith(("Test", "To"))
        cells = [cell for column in stack for cell in column.cells]
        kept_together = heading.split() + (cells if one_line else [word for cell in cells for word in cell.split()])
        table.add_column(
            heading,
            justify="left" if what == "Optimizer" else "right",
            min_width=max(map(len, kept_together)),
            no_wrap=one_line,
        )
    for i in range(len(outcome.rows)):
        table.add_row(*("\n".join(column.cells[i] for column in stack) for stack in stacks.values()))
    return table


def _lr(row: Row) -> str:
    if row.tuned is None:
        return NOTHING
    return f"{row.tuned.lr:g}" + (" *" if row.edge else "")


def _knobs(row: Row) -> str:
    if row.tuned is None:
        return NOTHING
    return ", ".join(f"{name} {value:g}" for name, value in row.tuned.knobs) or "defaults"


def _works(row: Row) -> str:
    if row.works is None:
        return NOTHING
    low, high = row.works
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _loss(track: Track | None, unit: Unit) -> str:
    if track is None or track.test is None:
        return "diverged" if track is None or track.diverged else NOTHING
    return _mean(track.test, unit.per_loss, 4)


def _metric(track: Track | None, metric: Metric) -> str:
    spread = track.metrics.get(metric.name) if track else None
    return NOTHING if spread is None else _mean(spread, metric.factor, metric.digits)


def _mean(spread: Spread, factor: float, digits: int) -> str:
    mean = f"{spread.mean * factor:.{digits}f}"
    return mean if spread.std is None else f"{mean} ± {spread.std * factor:.{digits}f}"


def _difference(outcome: Outcome, track: Track | None, row: Row) -> str:
    if track is None or row.key == outcome.spec.baseline:
        return NOTHING
    if track.diverged or track.difference is None:
        return f"diverged {track.diverged}/{len(track.trials)}" if track.diverged else NOTHING
    return interval(track.difference, outcome.judge, unit=False)


def _curvature(rows: list[Row]) -> list[Column]:
    """How much of AdaFisher's F is its damping; nothing where no AdaFisher takes part."""
    if not any(row.near_damping for row in rows):
        return []
    shares = [row.near_damping and f"{100 * row.near_damping.of_weights:.1f}" for row in rows]
    return [Column("F near lambda", "% of weights", tuple(share or NOTHING for share in shares))]


def _reach(reach: Reach | None, seeds: int) -> str:
    if reach is None:
        return NOTHING
    if reach.reached == 0:
        return "not reached"
    if reach.median is None:
        return f"never ({reach.reached}/{seeds})"
    return f"{reach.median:g}" + (f" ({reach.reached}/{seeds})" if reach.reached < seeds else "")


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
