"""The table, once as columns of text, and from these for the terminal, for Markdown and for the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from textwrap import wrap

from rich import box
from rich.table import Table

from fisheropt_lab.outcome import Outcome
from fisheropt_lab.summary import Reach, Row, Spread
from fisheropt_lab.tasks import Metric, Unit

NARROW = 9  # characters, of a heading over columns of several kinds
NOTHING = "-"  # a number that does not exist, because trials diverged


@dataclass(frozen=True)
class Column:
    """A heading in two parts, and a cell per optimizer."""

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

    def column(what: str, unit: str, cells: list[str]) -> Column:
        return Column(what, unit, tuple(cells))

    return [
        column("Optimizer", "", [row.label for row in rows]),
        replace(column("Best lr", "", [_lr(row) for row in rows]), stack="Optimizer"),
        *(column("Validation", unit.name, [_loss(row.validation, row, unit) for row in rows]) for unit in units),
        *(column("Test", unit.name, [_loss(row.test, row, unit) for row in rows]) for unit in units),
        *(
            column("Test", f"{metric.name} {metric.unit}", [_metric(row, metric) for row in rows])
            for metric in outcome.metrics
        ),
        column(f"Steps to {rows[0].label}'s best", "", [_reach(row.reach, seeds) for row in rows]),
        column("Step time", "optimizer ms", [_ms(row, "optimizer_ms", 2) for row in rows]),
        column("Step time", "training ms", [_ms(row, "training_ms", 1) for row in rows]),
        column("State", "B/param", [_bytes(row) for row in rows]),
        *_curvature(rows),
    ]


def footnotes(outcome: Outcome) -> list[str]:
    """What the table needs to be read right."""
    spec, rows = outcome.spec, outcome.rows
    seeds = len(spec.seeds)
    notes = [
        f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no spread",
        f"learning rate chosen on seed {spec.seeds[0]} by validation loss alone",
        f"steps: median over seeds until the first evaluation at or below {rows[0].label}'s best validation loss of "
        f"that seed, evaluated every {spec.eval_every} of {spec.steps} steps",
        "times: medians, optimizers taking turns",
    ]
    if any(row.near_damping for row in rows):
        notes.append(
            "F near lambda: within 10 % of it when training ended, where AdaFisher is momentum SGD; AdaFisher's times "
            "are means over a period of factor updates"
        )
    if any(0 < row.reach.reached < seeds for row in rows if row.reach):
        notes.append(f"(k/{seeds}): only k seeds got there, and the median counts the others as infinite")
    if any(row.edge for row in rows):
        notes.append("* the best learning rate is at the edge of the grid")
    notes += [f"{row.label}: {row.diverged} of {row.trials} trials diverged" for row in rows if row.diverged]
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
    """The table for a terminal; columns that differ by their unit only are stacked to save width."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="; ".join(footnotes(outcome)) + ".",
        caption_justify="left",
    )
    stacks: dict[str, list[Column]] = {}
    for column in columns(outcome):
        stacks.setdefault(column.stack or column.what, []).append(column)
    for what, stack in stacks.items():
        units = [column.unit for column in stack]
        if any(column.what != what for column in stack):
            heading = "\n".join(line for column in stack for line in wrap(f"{column.what} {column.unit}", NARROW))
        else:
            heading = "\n".join([what, *units] if len(units) > 1 else f"{what} {units[0]}".split())
        one_line = what in ("Validation", "Test")
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
    if row.best_lr is None:
        return NOTHING
    return f"{row.best_lr:g}" + (" *" if row.edge else "")


def _loss(spread: Spread | None, row: Row, unit: Unit) -> str:
    if spread is None:
        return "diverged" if row.diverged else NOTHING
    mean = f"{spread.mean * unit.per_loss:.4f}"
    return mean if spread.std is None else f"{mean} ± {spread.std * unit.per_loss:.4f}"


def _metric(row: Row, metric: Metric) -> str:
    spread = row.metrics.get(metric.name)
    if spread is None:
        return NOTHING
    mean = f"{spread.mean * metric.factor:.{metric.digits}f}"
    return mean if spread.std is None else f"{mean} ± {spread.std * metric.factor:.{metric.digits}f}"


def _curvature(rows: list[Row]) -> list[Column]:
    """How much of AdaFisher's F is its damping; nothing where no AdaFisher takes part."""
    if not any(row.near_damping for row in rows):
        return []
    shares = [row.near_damping and f"{100 * row.near_damping.of_weights:.1f}" for row in rows]
    return [Column("F near lambda", "% of weights", tuple(share or NOTHING for share in shares), stack="State")]


def _reach(reach: Reach | None, seeds: int) -> str:
    if reach is None:
        return NOTHING
    if reach.reached == 0:
        return "not reached"
    if reach.median is None:
        return f"never ({reach.reached}/{seeds})"
    return f"{reach.median:g}" + (f" ({reach.reached}/{seeds})" if reach.reached < seeds else "")


def _ms(row: Row, field: str, digits: int) -> str:
    return NOTHING if row.step_time is None else f"{getattr(row.step_time, field):.{digits}f}"


def _bytes(row: Row) -> str:
    return NOTHING if row.state_bytes_per_parameter is None else f"{row.state_bytes_per_parameter:.2f}"
