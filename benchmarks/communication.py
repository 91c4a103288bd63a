#!/usr/bin/env python3
"""What a step of sharded parameters sends, and what it would send with one all-reduce per statistic per tensor.

The decoder of the lab is split over processes of this machine by `fully_shard` and stepped in both ways in turn. They
compute the same; what differs is how often the processes meet. gloo over the loopback interface has a latency of some
tens of microseconds: on a real network each all-reduce costs more, not less.

    python benchmarks/communication.py                 # two and four processes, a minute or two
    python benchmarks/communication.py --size tiny     # seconds
    python benchmarks/communication.py --json FILE     # with versions and hardware, and a page beside it
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fisheropt
from fisheropt import FAdafactor, FAdam, _shards
from fisheropt._optimizer import RuleOptimizer
from fisheropt_lab.models.palm import SIZES, Palm

OPTIMIZERS: dict[str, Callable[[Any], RuleOptimizer]] = {"FAdam": FAdam, "FAdafactor": FAdafactor}
TOGETHER, APART = "all tensors together", "one all-reduce per statistic per tensor"


def step_apart(optimizer: RuleOptimizer) -> None:
    """A step whose processes meet for every statistic of every tensor on its own."""
    meet = _shards._meet

    def one_by_one(requests: list[Any]) -> None:
        for request in requests:
            meet([request])

    _shards._meet = one_by_one  # type: ignore[assignment]
    try:
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.step_tensor(p, group)
    finally:
        _shards._meet = meet


WAYS: dict[str, Callable[[RuleOptimizer], Any]] = {TOGETHER: lambda optimizer: optimizer.step(), APART: step_apart}


class Wire:
    """Counts and times the all-reduces of this process."""

    def __init__(self) -> None:
        self.reset()
        self._all_reduce = dist.all_reduce
        dist.all_reduce = self

    def reset(self) -> None:
        self.calls, self.bytes, self.seconds = 0, 0, 0.0

    def __call__(self, tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        done = self._all_reduce(tensor, *args, **named)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        self.bytes += tensor.numel() * tensor.element_size()
        return done


def sharded(size: str) -> nn.Module:
    torch.manual_seed(0)
    net = Palm(SIZES[size])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def measure(rank: int, ranks: int, store: str, size: str, steps: int, out: str) -> None:
    """What each process does; the first writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    net = sharded(size)
    tokens = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(0))
    logits = net(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    wire = Wire()
    found: dict[str, Any] = {"tensors": len(list(net.parameters()))}
    for name, make in OPTIMIZERS.items():
        optimizer = make(net.parameters())
        runs: dict[str, list[tuple[int, int, float, float]]] = {way: [] for way in WAYS}
        for _ in range(steps):
            for way, step in WAYS.items():
                wire.reset()
                dist.barrier()
                start = time.perf_counter()
                step(optimizer)
                runs[way].append((wire.calls, wire.bytes, time.perf_counter() - start, wire.seconds))
        found[name] = {}
        for way, measured in runs.items():
            calls, sent, seconds, waiting = zip(*measured[1:], strict=True)  # the first allocates state
            found[name][way] = {
                "all_reduces": max(calls),
                "bytes": max(sent),
                "step_ms": 1e3 * statistics.median(seconds),
                "all_reduce_ms": 1e3 * statistics.median(waiting),
            }
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def in_processes(ranks: int, size: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/found.json"
        torch.multiprocessing.spawn(measure, (ranks, f"{folder}/store", size, steps, out), nprocs=ranks)
        found: dict[str, Any] = json.loads(Path(out).read_text())
    return found


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [f"# What a step sends\n\nWritten by `benchmarks/communication.py`. {about}."]
    for ranks, found in results["processes"].items():
        lines = [
            f"## {ranks} processes, {found['tensors']} tensors, {results['parameters'] / 1e6:.1f}M parameters\n",
            "| | | all-reduces | bytes in them | ms in them | ms of a step |",
            "|---|---|---|---|---|---|",
        ]
        for name in OPTIMIZERS:
            for way, row in found[name].items():
                numbers = f"{row['all_reduces']} | {row['bytes']:,} | {row['all_reduce_ms']:.1f} | {row['step_ms']:.1f}"
                lines.append(f"| {name} | {way} | {numbers} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the decoder (default: small)")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="how many (default: 2 4)")
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind (default: 12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, and a page beside it")
    options = parser.parse_args()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Palm(SIZES[options.size]).parameters())
    results: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "fisheropt": fisheropt.__version__,
        },
        "parameters": parameters,
        "processes": {},
    }
    for ranks in options.processes:
        results["processes"][ranks] = in_processes(ranks, options.size, options.steps)
        print(f"{ranks} processes: done", file=sys.stderr, flush=True)
    print(page(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        options.json.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
