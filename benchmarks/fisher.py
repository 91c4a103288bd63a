#!/usr/bin/env python3
"""What a diagonal of the Fisher information costs, in backward passes, and that it is the one others compute.

A backward pass is what a training step spends after its forward pass. Each contender takes turns with a forward and a
backward pass on the same model; its time per batch, its own forward pass and what it does once per call included, is
divided by that of the backward pass next to it, and the table has the median of the ratios. It is the processor's time
on one thread that is compared, so that what else the machine does falls on neither, or on both.

    python benchmarks/fisher.py                             # a minute
    python benchmarks/fisher.py --json benchmarks/results/fisher.json   # and fisher.md beside it

Beside `torch.func.vmap` two libraries are compared where they are installed, for their values too:

    pip install --no-deps curvlinops-for-pytorch nngeometry einops einconv linear_operator

without the rest of their dependencies: what they ask for includes torchvision, which replaces a torch of another build,
and none of it is used here but SciPy, which the lab's own extra brings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import fisheropt
from fisheropt.fisher import fisher_diag
from fisheropt_lab.models.convnet import ConvNet
from fisheropt_lab.models.palm import SIZES, Palm

Diagonal = dict[str, Tensor]
BATCHES = 8  # of a call of fisher_diag, which tests the layers on the first one; its time is divided by them


@dataclass(frozen=True)
class Case:
    """A model with batches of labelled examples. No two are the same: what spreads would be nothing, and subnormal."""

    title: str
    model: nn.Module
    data: list[tuple[Tensor, Tensor]]

    def loss(self) -> Tensor:
        x, y = self.data[0]
        outputs = self.model(x)
        return functional.cross_entropy(outputs.flatten(0, -2), y.flatten())


def images(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(128, *shape), torch.randint(10, (128,))) for _ in range(BATCHES)]


def text() -> list[tuple[Tensor, Tensor]]:
    sequences = [torch.randint(256, (16, 65)) for _ in range(BATCHES)]
    return [(s[:, :-1], s[:, 1:]) for s in sequences]


def cases() -> list[Case]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return [
        Case("MLP 784-512-512-10, 128 examples", mlp, images((784,))),
        Case("transformer of 1M parameters, 16 x 64 tokens", Palm(SIZES["tiny"]), text()),
        Case("convnet on 8 x 8 images, 128 examples", ConvNet(), images((1, 8, 8))),
    ]


# -- contenders --------------------------------------------------------------------------------------------------------


def ours(estimator: str) -> Callable[[Case], Diagonal | None]:
    def diagonal(case: Case) -> Diagonal | None:
        if estimator == "exact" and case.data[0][1].dim() > 1:
            return None  # positions x K passes
        return dict(fisher_diag(case.model, case.data, estimator=estimator))

    return diagonal


def by_vmap(case: Case) -> Diagonal:
    """Per-example gradients of all parameters at once, squared and averaged, of the first batch."""
    params = {name: p.detach() for name, p in case.model.named_parameters()}

    def loss(params: Diagonal, x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(case.model, params, (x.unsqueeze(0),)).squeeze(0)
        return functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1), reduction="sum")

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, *case.data[0])
    return {name: g.square().mean(0) for name, g in found.items()}


TIMED: dict[str, tuple[Callable[[Case], Diagonal | None], int]] = {  # with how many batches each one takes
    "fisher_diag, empirical": (ours("empirical"), BATCHES),
    "fisher_diag, mc (one sample)": (ours("mc"), BATCHES),
    "fisher_diag, batched": (ours("batched"), BATCHES),
    "fisher_diag, exact (10 classes)": (ours("exact"), BATCHES),
    "torch.func.vmap of grad, empirical": (by_vmap, 1),
}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def ratio(case: Case, contender: str, rounds: int) -> tuple[float, float] | None:
    """Its time over that of a backward pass, and over that of a forward and a backward pass; None: it does not run."""
    work, batches = TIMED[contender]
    found = []
    for i in range(rounds + 1):
        case.model.zero_grad()
        forward, loss = timed(case.loss)
        backward, _ = timed(loss.backward)
        whole, diagonal = timed(lambda: work(case))
        if diagonal is None:
            return None
        if i:  # the first round warms up
            found.append((whole / batches / backward, whole / batches / (forward + backward)))
    return median(a for a, _ in found), median(b for _, b in found)


# -- the values of others ----------------------------------------------------------------------------------------------


def by_curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Diagonal]:
    from curvlinops import EFLinearOperator, GGNLinearOperator

    found = {}
    for estimator, operator in (("exact", GGNLinearOperator), ("empirical", EFLinearOperator)):
        params = [p for p in model.parameters() if p.requires_grad]
        F = operator(model, nn.CrossEntropyLoss(reduction="mean"), params, [(x, y)], check_deterministic=False)
        dense = F @ torch.eye(F.shape[1], dtype=x.dtype)
        found[estimator] = _named(model, dense.diagonal())
    return found


def by_nngeometry(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Diagonal]:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    default = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)  # it makes tensors of its own
    try:
        F = FIM(model, loader, PMatDiag, variant="classif_logits", device="cpu")
    finally:
        torch.set_default_dtype(default)
    return {"exact": _named(model, F.get_diag())}


def _named(model: nn.Module, diagonal: Tensor) -> Diagonal:
    params = dict(model.named_parameters())
    parts = torch.split(diagonal.detach(), [p.numel() for p in params.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}


def agreement() -> dict[str, dict[str, float]]:
    """Largest relative difference to what others compute, in float64, on a model of their kind: Linear and Tanh."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, y = torch.randn(16, 6, dtype=torch.float64), torch.randint(4, (16,))
    differences: dict[str, dict[str, float]] = {}
    for name, peer in (("curvlinops", by_curvlinops), ("nngeometry", by_nngeometry)):
        try:
            theirs = peer(model, x, y)
        except ImportError as error:
            print(f"{name} is not compared: {error}", file=sys.stderr)
            continue
        differences[name] = {}
        for estimator, expected in theirs.items():
            F = fisher_diag(model, [(x, y)], estimator=estimator)
            worst = max(float((F[n] - t).abs().max() / t.abs().max()) for n, t in expected.items())
            if not worst < 1e-10:
                raise AssertionError(f"{estimator}: fisher_diag and {name} differ by {worst:.1e}")
            differences[name][estimator] = worst
    for case in cases():
        F, expected = fisher_diag(case.model, case.data[:1], estimator="empirical"), by_vmap(case)
        worst = max(float((F[n] - t).abs().max() / t.abs().max()) for n, t in expected.items())
        if not worst < 1e-3:  # float32
            raise AssertionError(f"{case.title}: fisher_diag and vmap differ by {worst:.1e}")
        differences.setdefault("torch.func.vmap, float32", {})[case.title] = worst
    return differences


# -- report ------------------------------------------------------------------------------------------------------------


def table(results: dict[str, dict[str, tuple[float, float] | None]]) -> str:
    lines = ["| in backward passes (in forward and backward passes) | " + " | ".join(results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for contender in TIMED:
        found = [r[contender] for r in results.values()]
        cells = ("-" if pair is None else f"{pair[0]:.2f} ({pair[1]:.2f})" for pair in found)
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "fisheropt": fisheropt.__version__}
    for peer in ("curvlinops-for-pytorch", "nngeometry"):
        try:
            versions[peer] = version(peer)
        except PackageNotFoundError:
            versions[peer] = "not installed"
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns per contender (default: 5)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, and a table beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries compared, and of what vmap does one by one
    differences = agreement()
    for peer, found in differences.items():
        worst = ", ".join(f"{what} {difference:.0e}" for what, difference in found.items())
        print(f"agrees with {peer}: {worst}", file=sys.stderr)
    results = {}
    for case in cases():
        print(f"timing: {case.title}", file=sys.stderr)
        results[case.title] = {name: ratio(case, name, options.rounds) for name in TIMED}
    print(table(results))
    if options.json:
        content = {"machine": machine(), "agreement": differences, "results": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
        options.json.with_suffix(".md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
