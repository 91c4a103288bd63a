#!/usr/bin/env python3
"""What `fisheropt.Monitor` costs: training steps with one and without, in turns, as a ratio.

The lab's `tiny` language model (8 sequences of 128 bytes) with FAdam. Three copies step ten times each, in turns, so
that whatever else the machine does falls on all of them: without a monitor, with one that looks at every step, and with
one that looks at every tenth. The figure is the median over rounds of the time relative to that without in the same
round. Processor time of one thread, which other work on the machine changes little.

    python benchmarks/monitor.py                  # a minute or two
    python benchmarks/monitor.py --json monitor.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fisheropt import FAdam, Monitor
from fisheropt_lab.models.palm import SIZES, Palm

STEPS = 10  # per turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 129))
    model = Palm(SIZES["tiny"])
    folder = tempfile.TemporaryDirectory()
    contenders = {}
    for name, every in (("without", None), ("every step", 1), ("every 10 steps", STEPS)):
        own = copy.deepcopy(model)
        optimizer = FAdam(own.parameters(), lr=1e-6)
        if every is not None:
            Monitor(optimizer, every=every, path=Path(folder.name) / f"{every}.jsonl", model=own)
        contenders[name] = (own, optimizer)

    def turn(name: str) -> float:
        own, optimizer = contenders[name]
        start = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(own(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
            optimizer.step()
        return time.process_time() - start

    names = list(contenders)
    for name in names:
        turn(name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(arguments.rounds):
        for name in names[i % 3 :] + names[: i % 3]:
            seconds[name].append(turn(name))
    base = seconds["without"]
    results = {
        name: {
            "step_ms": 1e3 * statistics.median(times) / STEPS,
            "ratio": statistics.median(a / b for a, b in zip(times, base, strict=True)),
        }
        for name, times in seconds.items()
    }
    for name, found in results.items():
        print(f"{name:15} {found['step_ms']:7.1f} ms a step   {found['ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    folder.cleanup()


if __name__ == "__main__":
    main()
