"""The tables of a diagnosis, for the terminal and as cells for the page."""

from __future__ import annotations

from rich import box
from rich.table import Table

from fisheropt_lab.diagnose.looks import Look

HEADINGS = (
    ("Parameter", ""),
    ("Entries", ""),
    ("f/F", "trace"),
    ("f, F", "cosine"),
    ("f, F", "ranks"),
    ("f/emp.", "trace"),
    ("f, emp.", "cosine"),
    ("f/fresh", "trace"),
    ("eps", "%"),
    ("clip", "of c"),
    ("decay", "%"),
)
"""What, and its unit."""


def rows(look: Look) -> list[list[str]]:
    """A row of cells per tensor, and one for all."""
    cells = [
        [
            layer.name,
            f"{layer.fisher.entries:,}",
            _ratio(layer.fisher.trace_ratio),
            f"{layer.fisher.cosine:.2f}",
            f"{layer.fisher.rank_correlation:.2f}",
            _ratio(layer.empirical.trace_ratio),
            f"{layer.empirical.cosine:.2f}",
            _ratio(layer.fresh.trace_ratio),
            _or_dash(layer.step.epsilon_share, 100, ".1f"),
            _or_dash(layer.step.clip, 1, ".2f"),
            _or_dash(layer.step.decay_share, 100, ".1f"),
        ]
        for layer in look.layers
    ]
    total = look.total
    everything = [
        "all",
        f"{total['fisher'].entries:,}",
        _ratio(total["fisher"].trace_ratio),
        f"{total['fisher'].cosine:.2f}",
        f"{total['fisher'].rank_correlation:.2f}",
        _ratio(total["empirical"].trace_ratio),
        f"{total['empirical'].cosine:.2f}",
        _ratio(total["fresh"].trace_ratio),
    ]
    return [*cells, everything + [""] * (len(HEADINGS) - len(everything))]


def terminal_table(look: Look) -> Table:
    """The tensors one below the other, without what the page has room for."""
    left_out = {("f, emp.", "cosine"), ("Entries", "")}
    shown = [i for i, heading in enumerate(HEADINGS) if heading not in left_out]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"B T² f after {look.step} steps",
        title_justify="left",
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for i in shown:
        what, unit = HEADINGS[i]
        table.add_column(f"{what}\n{unit}", justify="right" if i else "left", no_wrap=not i)
    *tensors, everything = rows(look)
    for row in tensors:
        table.add_row(*(row[i] for i in shown))
    table.add_section()
    table.add_row(*(everything[i] for i in shown), style="bold")
    return table


def findings_table(look: Look) -> Table:
    """Questions and answers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", ratio=2)
    table.add_column(ratio=5)
    for question, answer in look.findings:
        table.add_row(question, answer)
    return table


def _ratio(x: float) -> str:
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"


def _or_dash(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(factor * value, form)
