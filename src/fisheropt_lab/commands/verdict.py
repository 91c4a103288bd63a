"""`fisheropt verdict`: the paper's claims beside the committed results, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fisheropt_lab.claims import verdict_page
from fisheropt_lab.files import write_text


def verdict(
    results: Annotated[Path, typer.Option(help="A folder with run folders, or with their results.json.")] = Path(
        "benchmarks/results"
    ),
    out: Annotated[Path | None, typer.Option(help="Write the page here instead of printing it.")] = None,
) -> None:
    """Gather results into one page: claim by claim, the paper's figure, ours with intervals, and a sentence."""
    page = verdict_page(results)
    if out is None:
        print(page, end="")
        return
    write_text(out, page)
    Console().print(str(out), highlight=False, soft_wrap=True)
