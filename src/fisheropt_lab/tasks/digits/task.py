"""The digits task: a small convolutional network says which digit an image shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisheropt_lab.models.convnet import ConvNet
from fisheropt_lab.options import known, positive
from fisheropt_lab.record import Exhibit
from fisheropt_lab.tasks.digits.images import SHARES, SOURCE, digest, load_images
from fisheropt_lab.tasks.protocol import Asked, Batch, Metric, Outline, Setup, Split, TaskKind, Unit

STEPS = 600
BATCH_SIZE = 32  # images
CLASSES = 10
LOSSES = ("cross-entropy", "squared")


@dataclass(frozen=True)
class DigitsSettings:
    """The part of a comparison's spec that only this task understands."""

    batch_size: int
    loss: str = LOSSES[0]  # "squared": the error of the logits against the one-hot digit, a Gaussian likelihood


class DigitsTask:
    """Implements `tasks.protocol.Task`."""

    def __init__(self, settings: DigitsSettings) -> None:
        self.settings = settings
        self.parts = load_images()

    def describe_data(self) -> dict[str, Any]:
        return {
            "source": SOURCE,
            "how_split": "digit by digit, " + ", ".join(f"{name} {share:.0%}" for name, share in SHARES.items()),
            "sha256": digest(self.parts),
            "images": {name: len(part) for name, part in self.parts.items()},
        }

    def protocol(self, steps: int) -> list[str]:
        data = self.describe_data()
        parameters = sum(p.numel() for p in ConvNet().parameters())
        sizes = ", ".join(f"{name} {size:,}" for name, size in data["images"].items())
        seen, test = steps * self.settings.batch_size, data["images"]["test"]
        return [
            f"Model: two 3 x 3 convolutions of 8 and 16 channels with ReLU, maximum over 2 x 2, a hidden layer of 32, "
            f"{parameters:,} parameters, PyTorch's default initial weights. No matrix is large enough to be "
            "factored by default, so FAdafactor is FAdam here.",
            f"Data: {data['source']}, 8 x 8 pixels in [0, 1]; images: {sizes}; split {data['how_split']}; SHA-256 "
            f"{data['sha256'][:16]}…. Who wrote which is not known, so a writer may be in several parts.",
            f"A training step sees {self.settings.batch_size} random images, without augmentation; {steps} steps see "
            f"{seen:,}, {seen / data['images']['train']:.2g} times the training part.",
            f"Validation and test look at all images of their parts. One image is {100 / test:.2f} % of the test "
            "accuracy, so differences of a few tenths of a per cent mean nothing.",
        ]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of our business
            torch.manual_seed(seed)
            return ConvNet()

    def batch(self, seed: int, step: int) -> Batch:
        """Pixels (B, 1, 8, 8) and digits (B,) of random training images."""
        train = self.parts["train"]
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        chosen = torch.from_numpy(random.integers(0, len(train), size=self.settings.batch_size))  # (B,)
        return train.pixels[chosen], train.digits[chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy per image, in nats; or the mean squared error of the logits."""
        pixels, digits = batch  # (B, 1, 8, 8), (B,)
        return digits_loss(self.settings.loss, model(pixels), digits)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """Nats per image over the whole part."""
        return self.loss(model, self._all(split, device)).item()

    @torch.no_grad()
    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        """The share of images whose digit has the largest logit."""
        pixels, digits = self._all(split, device)
        return {"accuracy": (model(pixels).argmax(dim=-1) == digits).double().mean().item()}

    def exhibits(self, model: nn.Module, device: torch.device) -> Iterable[Exhibit]:
        return ()

    def _all(self, split: Split, device: torch.device) -> Batch:
        part = self.parts[split]
        return part.pixels.to(device), part.digits.to(device)


def digits_loss(name: str, logits: Tensor, digits: Tensor) -> Tensor:
    """The mean over a batch of the named loss: logits (B, 10), digits (B,) -> ()"""
    if name == "squared":
        return nn.functional.mse_loss(logits.float(), nn.functional.one_hot(digits, CLASSES).float())
    return nn.functional.cross_entropy(logits.float(), digits)


def _setup(asked: Asked) -> Setup:
    settings = DigitsSettings(
        batch_size=positive("--batch-size", asked.batch_size, BATCH_SIZE),
        loss=known("loss", asked.set.get("loss", LOSSES[0]), LOSSES),
    )
    return Setup(asdict(settings), STEPS)


def _load(settings: Mapping[str, Any]) -> DigitsTask:
    return DigitsTask(DigitsSettings(**settings))


def _outline(settings: Mapping[str, Any]) -> Outline:
    chosen = DigitsSettings(**settings)
    with torch.device("meta"):
        model = ConvNet()
        pixels, digits = torch.empty(chosen.batch_size, 1, 8, 8), torch.empty(chosen.batch_size, dtype=torch.int64)
    return Outline(model, lambda net: digits_loss(chosen.loss, net(pixels), digits), f"{chosen.batch_size} images")


DIGITS = TaskKind(
    about="a small convolutional network on handwritten digits",
    units=(Unit("nats/image", 1.0),),
    optimizers="adamw,fadam,adafisher,sgd",
    options=frozenset({"batch_size", "loss"}),
    setup=_setup,
    load=_load,
    outline=_outline,
    metrics=(Metric("accuracy", "%", 100.0, 2, higher_is_better=True),),
    lrs={"adafisher": 2.5e-3, "adafisherw": 2.5e-3, "sgd": 0.125, "adamw": 1.6e-2, "fadam": 8e-3},
    losses={"cross-entropy": {"loss": "cross-entropy"}, "squared error": {"loss": "squared"}},
)
