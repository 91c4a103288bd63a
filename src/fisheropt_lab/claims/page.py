"""The page: claim by claim, what the paper says and what the committed results say, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fisheropt_lab.claims.claims import CLAIMS, Claim
from fisheropt_lab.errors import LabError
from fisheropt_lab.intervals import CLAIM_SEEDS, Paired
from fisheropt_lab.outcome import judge_of
from fisheropt_lab.spec import Spec
from fisheropt_lab.verdict import Judge, grouped, interval

INTRODUCTION = """# What the paper claims, and what was measured here

Written by `fisheropt verdict` from the results in `{folder}`; do not edit. The paper is
[arXiv:2405.12807](https://arxiv.org/abs/2405.12807).

**Runs this small test the code and the direction, not the paper's numbers**: its models and its training are larger
by orders of magnitude. How everything was measured is in [the protocol](protocol.md): every entry is tuned with the
same number of trials, then held against the first one on fresh seeds, seed by seed. *Tuned* gives each its own
settings, *drop-in* only replaces the optimizer. Differences are in the loss of the test split unless another measure is
named; below zero is lower. An interval across zero reads "no difference seen", and a claim takes {seeds} seeds.
"""


def verdict_page(results: Path) -> str:
    """Markdown, from every results.json below the folder that was made under the protocol.

    Raises:
        LabError: there is none.
    """
    found = _studies(results)
    if not found:
        raise LabError(f"no results of a study below {results}")
    parts = [INTRODUCTION.format(folder=results.as_posix(), seeds=CLAIM_SEEDS)]
    parts += [_claim(claim, found) for claim in CLAIMS]
    parts.append(_runs(found, results))
    return "\n".join(parts)


def _studies(folder: Path) -> dict[Path, dict[str, Any]]:
    """Results made under the protocol, by their files; older ones have no entries."""
    read = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("results.json"))}
    return {path: value for path, value in read.items() if "entries" in value.get("spec", {})}


def _claim(claim: Claim, found: dict[Path, dict[str, Any]]) -> str:
    lines = [f"## {claim.title}", "", f"The paper: {claim.says} Its figure: {claim.figure}.", ""]
    speaking = [value for value in found.values() if (value["spec"]["study"], value["spec"]["task"]) in claim.studies]
    if not speaking:
        command = _command(claim.studies[0][0], "|".join(task for _, task in claim.studies))
        return "\n".join([*lines, f"**Not measured under the protocol.** `{command}` would speak to it.", ""])
    for value in speaking:
        lines += _study(claim, value)
    return "\n".join(lines)


def _study(claim: Claim, value: dict[str, Any]) -> list[str]:
    spec = Spec.from_json(value["spec"])
    judge = judge_of(spec)
    first, *others = value["summary"]
    rows = [row for row in others if not claim.about or row["key"].startswith(claim.about)]
    if not rows:
        return [f"**Not measured** by `{value['command']}`, which leaves it out.", ""]
    lines = [
        f"**{_sentence(first, rows, spec)}** (`{value['command']}`: {spec.steps} steps, {len(spec.seeds)} fresh seeds)",
        "",
        f"| against {first['label']} | tuned, {judge.name} ({judge.unit}) | drop-in |",
        "|:--|--:|--:|",
    ]
    lines += [f"| {row['label']} | {_cell(row['tuned'], judge)} | {_cell(row['drop_in'], judge)} |" for row in rows]
    return [*lines, ""]


def _sentence(first: dict[str, Any], rows: list[dict[str, Any]], spec: Spec) -> str:
    """Who is better and who is worse than the first, in both tracks."""
    if len(spec.seeds) < CLAIM_SEEDS:
        return f"{grouped(spec, {})}."
    tracks = (("Tuned", "tuned"), ("Drop-in", "drop_in"))
    return " ".join(
        f"{name}, against {first['label']}: {grouped(spec, {row['label']: _paired(row[track]) for row in rows})}."
        for name, track in tracks
    )


def _paired(track: dict[str, Any] | None) -> Paired | None:
    found = track and track["difference"]
    return Paired(tuple(found["per_seed"])) if found else None


def _cell(track: dict[str, Any] | None, judge: Judge) -> str:
    if track is None:
        return "-"
    difference = _paired(track)
    return f"diverged on {track['diverged']} seeds" if difference is None else interval(difference, judge, unit=False)


def _command(study: str, task: str) -> str:
    return f"fisheropt compare {task}" if study == "compare" else f"fisheropt ablate {study} --task {task}"


def _runs(found: dict[Path, dict[str, Any]], folder: Path) -> str:
    lines = ["## The runs", "", "| results | command | finished | machine | versions |", "|:--|:--|:--|:--|:--|"]
    for path, value in found.items():
        environment = value["environment"]
        hardware, versions = environment["hardware"], environment["versions"]
        where = path.parent.relative_to(folder).as_posix()
        lines.append(
            f"| {where} | `{value['command']}` | {value['finished']} | {hardware['cpu']}, {hardware['cores']} cores | "
            f"torch {versions['torch']}, fisheropt {versions['fisheropt']} |"
        )
    return "\n".join([*lines, ""])
