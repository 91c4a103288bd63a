"""The artefacts of a finished study, all made from one `Outcome`."""

from __future__ import annotations

from fisheropt_lab.ablations import ABLATIONS
from fisheropt_lab.files import write_json, write_text
from fisheropt_lab.outcome import Outcome
from fisheropt_lab.report.ablation import draw_ablation
from fisheropt_lab.report.curves import draw_curves
from fisheropt_lab.report.page import render_page
from fisheropt_lab.report.table import markdown_table
from fisheropt_lab.run_folder import RunFolder


def write_reports(outcome: Outcome, folder: RunFolder) -> None:
    """results.json, table.md, curves.png and report.html."""
    write_json(folder.results, outcome.to_json())
    write_text(folder.table, markdown_table(outcome) + "\n")
    draw(outcome, folder)
    write_text(folder.report, render_page(outcome, folder.curves))


def draw(outcome: Outcome, folder: RunFolder) -> None:
    """curves.png, whichever picture suits the study."""
    if outcome.spec.study in ABLATIONS:
        draw_ablation(outcome, folder.curves)
    else:
        draw_curves(outcome, folder.curves)
