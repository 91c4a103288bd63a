"""The run folder of a demonstration. Whatever is on disk is not done again, so that starting over is going on.

run.json             what is shown, how, on which machine
seeds/seed-<n>.json  one finished seed each
results.json, table.md, picture.png
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import make_writable_folder, read_json, write_json, write_text
from fisheropt_lab.show.demonstration import Demonstration, Run, Tick

SAME = ("demonstration", "protocol", "versions")
"""What has to agree for seeds to belong together."""


class ShowFolder:
    """Names of files, and what may be in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.picture = root / "picture.png"
        self.table = root / "table.md"

    def start(self, demonstration: Demonstration, environment: dict[str, Any]) -> None:
        """Claim the folder, or make sure that it holds the same demonstration."""
        manifest = {
            "demonstration": demonstration.name,
            "protocol": list(demonstration.protocol),
            "versions": environment["versions"],
            "environment": environment,
        }
        path = self.root / "run.json"
        if path.exists():
            before = read_json(path)
            differs = [key for key in SAME if before.get(key) != manifest[key]]
            if differs:
                raise LabError(f"{self.root} holds a different run (other {', '.join(differs)}); name another --out")
        make_writable_folder(self.root)
        make_writable_folder(self.root / "seeds")
        if not path.exists():
            write_json(path, manifest)

    def run(self, demonstration: Demonstration, seed: int, tick: Tick) -> Run:
        """A seed's numbers: from disk, or now."""
        path = self.root / "seeds" / f"seed-{seed}.json"
        if path.exists():
            found: Run = read_json(path)
            return found
        result = demonstration.run(seed, tick)
        write_json(path, result)
        return result

    def report(self, demonstration: Demonstration, runs: Sequence[Run]) -> None:
        """results.json, table.md and picture.png."""
        tables = demonstration.tables(runs)
        write_json(
            self.root / "results.json",
            {
                **read_json(self.root / "run.json"),
                "tables": [
                    {"title": t.title, "columns": list(t.columns), "rows": [list(row) for row in t.rows]}
                    for t in tables
                ],
                "seeds": list(runs),
            },
        )
        write_text(self.table, "\n\n".join(table.markdown() for table in tables) + "\n")
        png = io.BytesIO()
        demonstration.draw(runs).savefig(png, dpi=110, format="png")
        self.picture.write_bytes(png.getvalue())


def run_demonstration(
    demonstration: Demonstration, seeds: int, folder: ShowFolder, tick: Callable[[int, str], None]
) -> list[Run]:
    """Every seed, then the reports. ``tick(seed, what)`` is told of every part."""
    runs = [folder.run(demonstration, seed, lambda what, seed=seed: tick(seed, what)) for seed in range(seeds)]
    folder.report(demonstration, runs)
    return runs
