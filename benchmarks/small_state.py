#!/usr/bin/env python3
"""Whether the fused step, and state in bfloat16 or 8 bits, train to the same loss as the plain step in float32.

FAdam trains the small language model of ``fisheropt compare text`` with the same seeds, weights and batches, once for
each way to keep state. A difference is one of the same seed, to the plain step; the seeds themselves differ by the
standard deviation in the first row.

    python benchmarks/small_state.py                     # 150 steps, three seeds: minutes
    python benchmarks/small_state.py --json result.json  # and write the numbers, and result.md
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

import fisheropt
from fisheropt import FAdam
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.tasks.text.task import SCALES, TextSettings, TextTask

LR, WARM_UP = 4e-3, 0.1
WAYS = {
    "FAdam, eager": partial(FAdam, backend="eager"),
    "FAdam": FAdam,
    "FAdam, bfloat16 state": partial(FAdam, state_dtype=torch.bfloat16),
    "FAdam, 8-bit state": partial(FAdam, state_dtype="int8"),
}


def trained(task: TextTask, way: str, seed: int, steps: int) -> dict[str, float]:
    """Validation loss in nats per byte, and the median milliseconds of a step of the optimizer."""
    model = task.model(seed)
    optimizer = WAYS[way](model.parameters(), lr=LR)
    milliseconds = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * lr_scale(step, steps, int(WARM_UP * steps))
        task.loss(model, task.batch(seed, step)).backward()
        start = time.perf_counter()
        optimizer.step()
        milliseconds.append((time.perf_counter() - start) * 1e3)
        optimizer.zero_grad()
    state = sum(x.numel() * x.element_size() for kept in optimizer.state.values() for x in kept.values())
    return {
        "loss": task.evaluate(model, "validation", torch.device("cpu")),
        "ms": median(milliseconds),
        "state": state / sum(p.numel() for p in model.parameters()),
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| | validation, nats/byte | difference to the plain step, seed by seed | step, ms | state, bytes/param |",
        "|---|---|---|---|---|",
    ]
    plain = [run["loss"] for run in next(iter(results.values()))]
    for way, runs in results.items():
        losses = [run["loss"] for run in runs]
        differences = ", ".join(f"{loss - other:+.4f}" for loss, other in zip(losses, plain, strict=True))
        spread = f"{mean(losses):.4f} ± {stdev(losses):.4f}" if len(losses) > 1 else f"{losses[0]:.4f}"
        ms, state = median(run["ms"] for run in runs), runs[0]["state"]
        lines.append(f"| {way} | {spread} | {differences} | {ms:.1f} | {state:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="training steps (default 150)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each way (default 3)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, and a page beside it")
    options = parser.parse_args()
    scale = SCALES["tiny"]
    task = TextTask(TextSettings("tiny", scale.batch_size, scale.seq_len, None))
    results: dict[str, list[dict[str, float]]] = {}
    for way in WAYS:
        results[way] = [trained(task, way, seed, options.steps) for seed in range(options.seeds)]
        print(table(results).splitlines()[-1], flush=True)
    if options.json:
        about: dict[str, Any] = {"steps": options.steps, "threads": torch.get_num_threads(), "lr": LR}
        about |= {"python": platform.python_version(), "torch": torch.__version__, "fisheropt": fisheropt.__version__}
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        said = ", ".join(f"{name} {value}" for name, value in about.items())
        page = f"# Small state trains as float32 does\n\nWritten by `benchmarks/small_state.py`: {said}.\n\n"
        options.json.with_suffix(".md").write_text(page + table(results) + "\n")


if __name__ == "__main__":
    main()
