"""diagnosis.html: the whole diagnosis on one page that needs no other file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined

from fisheropt_lab.diagnose.run import Run
from fisheropt_lab.diagnose.table import HEADINGS, rows
from fisheropt_lab.optimizers import contender


def render_page(run: Run, picture: Path, manifest: dict[str, Any]) -> str:
    """HTML with the picture inlined.

    Args:
        run: what was found.
        picture: the PNG.
        manifest: ``command``, ``environment`` and ``finished``.
    """
    environment = Environment(
        loader=PrefixLoader(
            {
                "diagnose": PackageLoader("fisheropt_lab.diagnose", package_path=""),
                "report": PackageLoader("fisheropt_lab.report", package_path=""),
            }
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("diagnose/page.html.j2").render(
        title=f"What {contender(run.plan.optimizer).label}'s f is worth on {run.plan.task}",
        run=run,
        look=run.looks[-1],
        headings=HEADINGS,
        rows=rows(run.looks[-1]),
        manifest=manifest,
        picture=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )
