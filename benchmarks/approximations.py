#!/usr/bin/env python3
"""What a diagonal leaves out, and how good AdaFisher's Kronecker product is, on models in the middle of training.

python benchmarks/approximations.py digits    # seconds: off-diagonal mass and Kronecker gap
python benchmarks/approximations.py text      # half a minute: the gap alone, the exact diagonal has 32,768 columns
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fisheropt import FAdam
from fisheropt.fisher import kron_diag_gap, offdiagonal_mass
from fisheropt_lab.tasks import TASKS
from fisheropt_lab.tasks.protocol import Asked

STEPS, LRS = {"digits": 150, "text": 100}, {"digits": 8e-3, "text": 4e-3}
BATCHES, PROBES = {"digits": 4, "text": 4}, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=STEPS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.task
    task = TASKS[name].setup(Asked()).load()
    model = task.model(0)
    optimizer = FAdam(model.parameters(), lr=LRS[name])
    for step in range(STEPS[name]):
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    data = [task.batch(0, STEPS[name] + i) for i in range(BATCHES[name])]
    gap = kron_diag_gap(model, data)
    print(f"{name}, after {STEPS[name]} steps: Kronecker product against the diagonal, {gap.units} examples\n{gap}\n")
    results = {"kronecker": {k: {**v.agreement._asdict(), "best": v.best_cosine} for k, v in gap.layers.items()}}
    if name == "digits":
        masses = offdiagonal_mass(model, data, probes=PROBES)
        print(f"share of the squared Frobenius norm off the diagonal, {PROBES} probes")
        for parameter, found in masses.items():
            print(f"{parameter:18} {found.entries:>6}  {found.mass:.4f} ± {found.standard_error:.4f}")
        results["offdiagonal"] = {k: v._asdict() for k, v in masses.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
