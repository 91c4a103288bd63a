#!/usr/bin/env python3
"""What AdaFisher costs: whole training steps, and the memory of its factors, beside momentum SGD and AdamW.

Two models: the lab's `tiny` language model, and a convolutional net of the shape of ResNet-18. The contenders take
turns, ten steps each, so that whatever else the machine does falls on all of them; ten is a period of
``update_every=10``. The figure is the median over rounds of the time relative to momentum SGD in the same round.
Then the step alone, between two updates of the factors, on weights that no cache holds.

    python benchmarks/adafisher.py                     # a few minutes on two idle cores
    python benchmarks/adafisher.py --cpu --threads 1   # on a busy machine: processor time of one thread
    python benchmarks/adafisher.py --json adafisher.json
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisheropt import AdaFisherW
from fisheropt_lab.models.palm import SIZES, Palm

PERIOD = 10

CONTENDERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {  # the first is what the others are measured by
    "SGD, momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True),
    "AdamW, fused": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "AdaFisherW, update_every=10": lambda model: AdaFisherW(model, lr=1e-6, update_every=10),
    "AdaFisherW, update_every=1": lambda model: AdaFisherW(model, lr=1e-6, update_every=1),
}


ALONE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, momentum, fused": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True),
    "AdamW, fused": CONTENDERS["AdamW, fused"],
    "AdaFisherW": lambda model: AdaFisherW(model, lr=1e-6, update_every=10**9),
    "AdaFisherW, eager": lambda model: AdaFisherW(model, lr=1e-6, update_every=10**9, backend="eager"),
}


class Block(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        changes = stride > 1 or channels != out
        self.beside = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.beside = self.beside if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)"""
        return (self.body(x) + self.beside(x)).relu_()


def resnet18(width: int) -> nn.Module:
    """Four stages of two blocks, ``width`` channels in the first (64 in the original): (B, 3, 32, 32) -> (B, 10)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(Block(channels, out, 2 if stage > 0 and block == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def language_model() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The model and its loss on a fixed batch of 8 sequences of 128 bytes, as the lab's."""
    x = torch.randint(0, 256, (8, 129))
    return Palm(SIZES["tiny"]), lambda model: cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def convnet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The model and its loss on a fixed batch of 32 images of 32 by 32 pixels."""
    x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    return resnet18(width=16), lambda model: cross_entropy(model(x), y)


def weights() -> nn.Module:
    """Four times the matrices of a block of GPT-2, 28 million numbers: (1, 768) -> (1, 768)."""
    shapes = [(768, 2304), (2304, 768), (768, 3072), (3072, 768)]
    return nn.Sequential(*(nn.Linear(i, o) for _ in range(4) for i, o in shapes))


MODELS = {"language model, Palm tiny": language_model, "convnet, ResNet-18 of width 16": convnet}


def seconds(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[nn.Module], Tensor],
    clock: Callable[[], float],
) -> float:
    """A period of training steps."""
    start = clock()
    for _ in range(PERIOD):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return clock() - start


def factor_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of everything AdaFisher keeps to form F; 0 for the others."""
    record: dict[str, Any] = optimizer.state.get("fisher", {"factors": {}})  # type: ignore[call-overload]
    return sum(x.nbytes for known in record["factors"].values() for x in known.values() if isinstance(x, Tensor))


def measure(
    make: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    torch.manual_seed(0)
    model, loss_of = make()
    runs = []
    for name, build in CONTENDERS.items():
        own = copy.deepcopy(model)
        runs.append((name, own, build(own)))
    for _, own, optimizer in runs:
        seconds(own, optimizer, loss_of, clock)  # allocates state, warms caches
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, own, optimizer in runs:
            times[name].append(seconds(own, optimizer, loss_of, clock) / PERIOD)
    results = ratios_of(times)
    for name, _, optimizer in runs:
        results[name]["factors"] = factor_bytes(optimizer)
    return {"parameters": sum(p.numel() for p in model.parameters()), "results": results}


def measure_alone(rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    runs = []
    model = weights()
    for name, build in ALONE.items():
        own = copy.deepcopy(model)
        optimizer = build(own)
        own(torch.randn(1, 768)).square().mean().backward()
        optimizer.step()  # allocates state, and takes in the only factors
        runs.append((name, optimizer))
    times: dict[str, list[float]] = {name: [] for name in ALONE}
    for _ in range(3 * rounds):
        for name, optimizer in runs:
            start = clock()
            optimizer.step()
            times[name].append(clock() - start)
    return {"parameters": sum(p.numel() for p in model.parameters()), "results": ratios_of(times)}


def ratios_of(times: dict[str, list[float]]) -> dict[str, Any]:
    """Of each contender the seconds, and their ratio to the first one's of the same round: median and quartiles."""
    base = times[next(iter(times))]
    results = {}
    for name, mine in times.items():
        ratios = [t / b for t, b in zip(mine, base, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        results[name] = {"ms": 1e3 * statistics.median(mine), "ratio": median, "low": low, "high": high}
    return results


def show(name: str, measured: dict[str, Any]) -> None:
    size = 4 * measured["parameters"]
    print(f"\n{name}: {measured['parameters']:,} parameters, {size / 2**20:.1f} MiB")
    print(f"{'':30}{'ms/step':>9}{'of SGD':>9}{'quartiles':>15}{'factors':>12}")
    for contender, r in measured["results"].items():
        factors = f"{r['factors'] / 2**10:.0f} KiB" if r.get("factors") else "-"
        quartiles = f"{r['low']:.2f}-{r['high']:.2f}"
        print(f"{contender:30}{r['ms']:9.1f}{r['ratio']:9.3f}{quartiles:>15}{factors:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contender, each of ten steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="count processor time and not time on the clock")
    parser.add_argument("--json", help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu else time.perf_counter
    found = {}
    for name, make in MODELS.items():
        found[name] = measure(make, arguments.rounds, clock)
        show(name, found[name])
    alone = "the step alone, between two updates"
    found[alone] = measure_alone(arguments.rounds, clock)
    show(alone, found[alone])
    machine = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "processor": platform.machine(),
        "cpu time": arguments.cpu,
    }
    print(f"\n{machine}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "rounds": arguments.rounds, "models": found}, file, indent=1)


if __name__ == "__main__":
    main()
