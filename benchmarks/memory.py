#!/usr/bin/env python3
"""Peak memory of training steps, for each optimizer and each way to keep its state.

Every measurement is a process of its own that builds the decoder of the lab, takes three steps and reports the largest
resident size the operating system saw, less its size before the model existed. Gradients are freed as a training loop
would (``zero_grad``), activations are kept small by a short batch, so that what remains is weights, gradients, state
and the working memory of the step.

    python benchmarks/memory.py                      # the `base` model, 100M parameters: a few minutes, 2 GiB
    python benchmarks/memory.py --size small         # seconds
    python benchmarks/memory.py --json memory.json   # with versions and hardware
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

import fisheropt
from fisheropt import FAdafactor, FAdam, step_in_backward
from fisheropt_lab.models.palm import SIZES, Palm

CASES: dict[str, tuple[Callable[..., Any], bool]] = {  # label -> how to make the optimizer, whether backward steps
    "AdamW, fused": (partial(AdamW, fused=True), False),
    "AdamW, foreach": (partial(AdamW, foreach=True), False),
    "FAdam": (FAdam, False),
    "FAdam, in backward": (FAdam, True),
    "FAdam, bfloat16 state": (partial(FAdam, state_dtype=torch.bfloat16), False),
    "FAdam, bfloat16 state, in backward": (partial(FAdam, state_dtype=torch.bfloat16), True),
    "FAdam, 8-bit state": (partial(FAdam, state_dtype="int8"), False),
    "FAdam, 8-bit state, in backward": (partial(FAdam, state_dtype="int8"), True),
    "FAdafactor": (FAdafactor, False),
    "FAdafactor, in backward": (FAdafactor, True),
    "FAdafactor, 8-bit state, in backward": (partial(FAdafactor, state_dtype="int8"), True),
    "FAdafactor, no momentum": (partial(FAdafactor, momentum=False), False),
    "FAdafactor, no momentum, in backward": (partial(FAdafactor, momentum=False), True),
}

UNIT = 1024 if sys.platform != "darwin" else 1  # getrusage counts in KiB, on macOS in bytes


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def measure(label: str, size: str) -> dict[str, float]:
    """In a fresh process: bytes per parameter at the peak of three steps, and of state afterwards."""
    factory, in_backward = CASES[label]
    warm = torch.nn.Linear(256, 256)  # what libraries allocate on first use belongs to no optimizer
    optimizer = factory(warm.parameters())
    warm(torch.randn(8, 256)).square().mean().backward()
    optimizer.step()
    before = peak()

    torch.manual_seed(0)
    model = Palm(SIZES[size])
    optimizer = step_in_backward(model, factory).optimizer if in_backward else factory(model.parameters())
    for _ in range(3):
        tokens = torch.randint(256, (1, 65))
        logits = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    parameters = sum(p.numel() for p in model.parameters())
    state = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
    return {"peak": (peak() - before) / parameters, "state": state / parameters, "parameters": parameters}


def in_fresh_process(label: str, size: str) -> dict[str, float]:
    # glibc keeps freed memory for later use unless it came from mmap; the resident size would not show what is free
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--case", label, "--size", size]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def table(results: dict[str, dict[str, float]]) -> str:
    reference = results["AdamW, fused"]["peak"]
    lines = ["| | state, bytes per parameter | peak, bytes per parameter | of AdamW's peak |", "|---|---|---|---|"]
    for label, r in results.items():
        lines.append(f"| {label} | {r['state']:.2f} | {r['peak']:.1f} | {r['peak'] / reference:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base", help="size of the decoder (default: base)")
    parser.add_argument("--json", type=Path, help="write the numbers, with versions and hardware, to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.size)))
        return
    results: dict[str, dict[str, float]] = {}
    for label in CASES:
        results[label] = in_fresh_process(label, options.size)
        print(f"{label}: {results[label]['peak']:.1f} bytes per parameter at the peak", file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        versions = {"python": platform.python_version(), "torch": torch.__version__, "fisheropt": fisheropt.__version__}
        content = {"size": options.size, "machine": machine, "versions": versions, "results": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
