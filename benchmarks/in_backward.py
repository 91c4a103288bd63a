#!/usr/bin/env python3
"""What an optimizer adds to a training step, and whether stepping inside ``backward`` hides some of it.

A decoder of the lab is trained on random bytes, a step of each contender in turn. Added is the time of forward,
backward and step less that of forward and backward alone in the same round; the table has medians, and the ratio to
what torch's fused AdamW adds.

    python benchmarks/in_backward.py                 # the `small` model: about a minute
    python benchmarks/in_backward.py --size base     # 100M parameters
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.optim import AdamW

from fisheropt import FAdam, step_in_backward
from fisheropt_lab.models.palm import SIZES, Palm


def contenders(size: str) -> dict[str, Callable[[torch.Tensor], float]]:
    """Label -> a training step on tokens, which returns its seconds."""

    def made(step: Callable[[], object], model: Palm) -> Callable[[torch.Tensor], float]:
        def train(tokens: torch.Tensor) -> float:
            start = time.perf_counter()
            logits = model(tokens[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            step()
            taken = time.perf_counter() - start
            model.zero_grad()
            return taken

        return train

    def model() -> Palm:
        torch.manual_seed(0)
        return Palm(SIZES[size])

    alone, adamw, after, inside = (model() for _ in range(4))
    step_in_backward(inside, partial(FAdam, lr=1e-6))
    return {
        "forward and backward alone": made(lambda: None, alone),
        "AdamW, fused": made(AdamW(adamw.parameters(), lr=1e-6, fused=True).step, adamw),
        "FAdam": made(FAdam(after.parameters(), lr=1e-6).step, after),
        "FAdam, in backward": made(lambda: None, inside),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the decoder (default: small)")
    parser.add_argument("--rounds", type=int, default=25, help="training steps of each (default 25)")
    options = parser.parse_args()
    steps = contenders(options.size)
    added: dict[str, list[float]] = {label: [] for label in steps}
    for i in range(options.rounds + 3):
        tokens = torch.randint(256, (1, 65), generator=torch.Generator().manual_seed(i))
        seconds = {label: step(tokens) for label, step in steps.items()}
        alone = seconds["forward and backward alone"]
        if i >= 3:  # kernels are compiled, memory is there
            for label, taken in seconds.items():
                added[label].append(taken - alone if label != "forward and backward alone" else taken)
    adamw = median(added["AdamW, fused"])
    print("| | added, ms | of AdamW's |\n|---|---|---|")
    for label, times in added.items():
        ratio = "" if label == "forward and backward alone" else f"{median(times) / adamw:.2f}"
        print(f"| {label} | {median(times) * 1e3:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
