"""A small network for the digits of scikit-learn, and the diagonal of its Fisher information from every estimator.

Shape letters, used in the comments: B images in the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt import FAdam, fisher_from_optimizer
from fisheropt.fisher import fisher_diag
from fisheropt_lab.schedule import lr_scale
from fisheropt_lab.tasks.digits.images import load_images

BATCH_SIZE = 32
LR = 5e-3
WARMUP = 20  # steps
OLD, NEW = 0, 1  # the halves: digits 0 to 4, digits 5 to 9

Data = tuple[Tensor, Tensor]
Fisher = Mapping[str, Tensor]

ESTIMATORS = {
    "exact": "exact",
    "mc": "mc, 4 draws",
    "empirical": "empirical",
    "batched": "batched",
    "fadam": "FAdam's own f",
}
"""Where a Fisher diagonal can come from, and what the tables call it."""

UNIFORM = "uniform"  # no Fisher at all: the control


def classifier(seed: int, classes: int) -> nn.Module:
    """Two hidden layers of 64: (B, 64) -> (B, classes)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 64),  # (B, 64)
            nn.ReLU(),
            nn.Linear(64, 64),  # (B, 64)
            nn.ReLU(),
            nn.Linear(64, classes),  # (B, classes)
        )


@cache
def digits(part: str, half: int | None = None) -> Data:
    """Pixels in [0, 1], (N, 64), and digits, (N,), of train, validation or test: all of them, or one half."""
    images = load_images()[part]
    keep = torch.ones(len(images), dtype=torch.bool) if half is None else (images.digits >= 5) == bool(half)
    return images.pixels.flatten(1)[keep], images.digits[keep]


def train(
    model: nn.Module,
    data: Data,
    steps: int,
    seed: int,
    lr: float = LR,
    extra_loss: Callable[[], Tensor] | None = None,
    after_step: Callable[[Optimizer], None] | None = None,
) -> FAdam:
    """Train with FAdam on random batches of a fixed seed; the optimizer, whose state has f."""
    pixels, labels = data
    optimizer = FAdam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_scale(step, steps, WARMUP)
        chosen = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)  # (B,)
        loss = nn.functional.cross_entropy(model(pixels[chosen]), labels[chosen])
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if after_step is not None:
            after_step(optimizer)
    return optimizer


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """In per cent."""
    pixels, labels = data
    return 100 * (model(pixels).argmax(-1) == labels).double().mean().item()


def fishers(model: nn.Module, data: Data, optimizer: FAdam) -> dict[str, Fisher]:
    """The diagonal from every estimator: of the model on all of the data, and out of the optimizer that trained it.

    ``batched`` squares the mean gradients of batches of 32, as FAdam's f does; f is the average over training, times
    the batch size. FAdam's last steps count most, but its half-life of 690 steps reaches back to the start.
    """
    pixels, labels = data
    batches = list(zip(pixels.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
    found: dict[str, Fisher] = {
        name: fisher_diag(model, batches, estimator=name, n_samples=4 if name == "mc" else 1)  # type: ignore[arg-type]
        for name in ("exact", "mc", "empirical", "batched")
    }
    found["fadam"] = fisher_from_optimizer(optimizer, model, batch_size=BATCH_SIZE)
    return found


def trace(fisher: Fisher) -> float:
    """The sum over all parameters."""
    return sum(F.double().sum().item() for F in fisher.values())


def of_mean_one(fisher: Fisher) -> dict[str, Tensor]:
    """The same shape at another scale: estimators differ in scale by far more than any grid of strengths is wide."""
    mean = trace(fisher) / sum(F.numel() for F in fisher.values())
    return {name: (F / mean).float() for name, F in fisher.items()}


def uniform(model: nn.Module) -> dict[str, Tensor]:
    """F = 1 for every parameter."""
    return {name: torch.ones_like(p, requires_grad=False) for name, p in model.named_parameters()}


def twin(model: nn.Module) -> nn.Module:
    """A copy that can be trained on its own."""
    return copy.deepcopy(model)
