"""What an optimizer's f is worth on a task of the lab: train, look on the way, say it in a table and on a page."""

from __future__ import annotations

from fisheropt_lab.diagnose.looks import Look
from fisheropt_lab.diagnose.page import render_page
from fisheropt_lab.diagnose.picture import draw_picture
from fisheropt_lab.diagnose.request import DiagnoseRequest
from fisheropt_lab.diagnose.run import Run, run_diagnosis
from fisheropt_lab.diagnose.table import findings_table, terminal_table

__all__ = [
    "DiagnoseRequest",
    "Look",
    "Run",
    "draw_picture",
    "findings_table",
    "render_page",
    "run_diagnosis",
    "terminal_table",
]
