#!/usr/bin/env python3
"""How long a step takes, for every optimizer and backend, as a ratio to torch's fused AdamW in the same run.

Each contender takes turns with AdamW, step by step, and its time is divided by that of the AdamW step before it; the
table has the median of these ratios. So what else the machine does meanwhile, or how warm it is, falls on both.
The copy bandwidth says how near a step is to what memory allows.

    python3 run.py bench                        # everything: under 4 minutes, at most 8 GiB
    python3 run.py bench --only gpt2            # one of the models
    python3 run.py bench --json result.json     # and write the numbers, with versions and hardware, and result.md
                                                # (of a model that is not measured, those that are there stay)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

import fisheropt
from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam

Factory = Callable[[list[Parameter]], Optimizer]
Shapes = list[tuple[int, ...]]

LR = 1e-6  # nothing is learned: the numbers stay in the range in which training has them
WARM_UP, FEWEST, MOST = 2, 3, 15  # steps


# -- what is stepped ---------------------------------------------------------------------------------------------------


def gpt2(layers: int = 12, d: int = 768, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """The shapes of GPT-2, 124M parameters, head tied."""
    block: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(vocabulary, d), (context, d), *(block * layers), (d,), (d,)]


@dataclass(frozen=True)
class Model:
    """Tensors to step."""

    title: str
    shapes: Shapes
    dtype: torch.dtype

    def parameters(self) -> list[Parameter]:
        """Weights of the size training leaves them with, and gradients."""
        generator = torch.Generator().manual_seed(0)
        params = []
        for shape in self.shapes:
            p = Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(self.dtype))
            p.grad = torch.randn(shape, generator=generator).mul_(1e-3).to(self.dtype)
            params.append(p)
        return params


MODELS = {
    "gpt2": Model("GPT-2, 124M parameters, float32", gpt2(), torch.float32),
    "bfloat16": Model("GPT-2, 124M parameters, bfloat16", gpt2(), torch.bfloat16),
    "small": Model("1,000 tensors of 1,024 elements, float32", [(1024,)] * 1000, torch.float32),
}


# -- who steps ---------------------------------------------------------------------------------------------------------


def contenders(model: Model) -> dict[str, Factory]:
    """Label -> optimizer. ``auto`` is the fused kernel where there is one; the table says what it was."""
    fadam, fadafactor = partial(FAdam, lr=LR, weight_decay=0.1), partial(FAdafactor, lr=LR, weight_decay=0.1)
    found: dict[str, Factory] = {
        "torch AdamW, foreach": partial(AdamW, lr=LR, foreach=True),
        "FAdam": fadam,
        "FAdam, weight_decay=0": partial(FAdam, lr=LR, weight_decay=0.0),
        "FAdam, rho=0.7": partial(fadam, rho=0.7),
        "FAdam, clip=None": partial(fadam, clip=None),
        "FAdam, eager": partial(fadam, backend="eager"),
        "FAdafactor": fadafactor,
        "FAdafactor, no momentum": partial(fadafactor, momentum=False),
        "FAdafactor, eager": partial(fadafactor, backend="eager"),
        "Adam": partial(Adam, lr=LR),
        "Adafactor": partial(Adafactor, lr=LR),
    }
    if model is not MODELS["small"]:
        found["FAdam, bfloat16 state"] = partial(fadam, state_dtype=torch.bfloat16)
        found["FAdam, 8-bit state"] = partial(fadam, state_dtype="int8")
        found["FAdafactor, 8-bit state"] = partial(fadafactor, state_dtype="int8")
    if model.dtype == torch.bfloat16:
        found["FAdam, bfloat16 state, stochastic weights"] = partial(
            fadam, state_dtype=torch.bfloat16, stochastic_rounding=True
        )
    try:
        from pytorch_optimizer import FAdam as TheirFAdam

        found["pytorch_optimizer FAdam"] = partial(TheirFAdam, lr=LR, weight_decay=0.1)
    except ImportError:
        pass
    return found


def backend_of(optimizer: Optimizer) -> str:
    """What runs most of the parameters, for optimizers of this library."""
    if not hasattr(optimizer, "backends"):
        return ""
    picked = [name.split(" ")[0] for name in optimizer.backends().values()]
    return max(set(picked), key=picked.count)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors it keeps."""
    return sum(
        value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a table. Times are medians in milliseconds; ratios are medians over rounds, CPU time likewise."""

    name: str
    backend: str
    ratio: float
    cpu_ratio: float
    ms: float
    state: float
    rounds: int


def timed(step: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def rows(model: Model, seconds: float, only: str) -> Iterator[Row]:
    """Each contender against fused AdamW, on the same parameters."""
    params = model.parameters()
    elements = sum(p.numel() for p in params)
    reference = AdamW(params, lr=LR, fused=True)
    base = [timed(reference.step)[0] for _ in range(WARM_UP + 5)][WARM_UP:]
    yield Row("torch AdamW, fused", "", 1.0, 1.0, median(base) * 1e3, state_bytes(reference) / elements, len(base))
    for name, factory in contenders(model).items():
        if only not in name:
            continue
        optimizer = factory(params)
        for _ in range(WARM_UP):
            optimizer.step()
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        until = time.perf_counter() + seconds
        while len(pairs) < FEWEST or (len(pairs) < MOST and time.perf_counter() < until):
            pairs.append((timed(reference.step), timed(optimizer.step)))
        yield Row(
            name,
            backend_of(optimizer),
            median(theirs[0] / ours[0] for ours, theirs in pairs),
            median(theirs[1] / ours[1] for ours, theirs in pairs),
            median(theirs[0] for _, theirs in pairs) * 1e3,
            state_bytes(optimizer) / elements,
            len(pairs),
        )
        del optimizer
        gc.collect()


def copy_bandwidth() -> float:
    """GB/s of reading plus writing, copying 256 MiB."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source))[0] for _ in range(9))
    return 2 * source.nbytes / best / 1e9


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if (about := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*: (.*)$", about.read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    found = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    found |= {"torch": torch.__version__, "fisheropt": fisheropt.__version__}
    for package in ("numba", "pytorch_optimizer"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


# -- saying it ---------------------------------------------------------------------------------------------------------

HEAD = "| | backend | time / fused AdamW | CPU time | ms | state, bytes/param |\n|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """A row of a Markdown table."""
    numbers = f"{row.ratio:.2f} | {row.cpu_ratio:.2f} | {row.ms:.1f} | {row.state:.2f}"
    return f"| {row.name} | {row.backend} | {numbers} |"


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value is not None)
    parts = [f"{about}; copying runs at {results['copy_gb_per_s']:.1f} GB/s."]
    if "note" in results:
        parts.append(results["note"])
    for key, found in results["models"].items():
        parts.append(f"## {MODELS[key].title}\n\n{HEAD}\n" + "\n".join(line(Row(**row)) for row in found))
    return "# Time of a step\n\nWritten by `benchmarks/step.py`.\n\n" + "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step of every optimizer against torch's fused AdamW.")
    parser.add_argument("--only", choices=MODELS, action="append", help="one of the models; may be repeated")
    parser.add_argument("--contender", default="", help="only those with this in their name")
    parser.add_argument("--seconds", type=float, default=4.0, help="measuring time per contender (default 4)")
    parser.add_argument("--threads", type=int, help="threads (default: as many as torch takes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, and a page beside it")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": machine(), "copy_gb_per_s": copy_bandwidth(), "models": {}}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if before["machine"] == results["machine"]:
            results["models"] = before["models"]  # those that are not measured now stay
    print(f"{results['machine']}\ncopying runs at {results['copy_gb_per_s']:.1f} GB/s", flush=True)
    for key in arguments.only or list(MODELS):
        print(f"\n{MODELS[key].title}\n{HEAD}", flush=True)
        found = results["models"][key] = []
        for row in rows(MODELS[key], arguments.seconds, arguments.contender):
            print(line(row), flush=True)
            found.append(asdict(row))
        gc.collect()
        if arguments.json:
            write(results, arguments.json)


def write(results: dict[str, Any], file: Path) -> None:
    """As JSON, and as a page beside it."""
    results["models"] = {key: results["models"][key] for key in MODELS if key in results["models"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
