"""The image task: a VQ-VAE describes a picture by a few codes and paints it again (arXiv:2405.12807, Section 4.3)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fisheropt_lab.errors import LabError
from fisheropt_lab.models.codebook import perplexity
from fisheropt_lab.models.vqvae import SIZES, VqVae
from fisheropt_lab.options import known, positive
from fisheropt_lab.record import Exhibit
from fisheropt_lab.tasks.image.folder import Folder
from fisheropt_lab.tasks.image.metrics import RandomConvNet, frechet_distance, inception_distance, similarity
from fisheropt_lab.tasks.image.photos import Photos
from fisheropt_lab.tasks.image.pictures import Pictures, Pixels
from fisheropt_lab.tasks.image.pixel_losses import CHANNELS, LOSSES, PixelLoss
from fisheropt_lab.tasks.protocol import Asked, Batch, Metric, Outline, Setup, Split, TaskKind, Unit


@dataclass(frozen=True)
class Scale:
    """What a model size is trained with unless the user says otherwise."""

    steps: int
    batch_size: int  # crops


SCALES: dict[str, Scale] = {
    "tiny": Scale(steps=750, batch_size=8),
    "small": Scale(steps=10_000, batch_size=32),
    "base": Scale(steps=50_000, batch_size=128),
    "100m": Scale(steps=500_000, batch_size=256),
}
PACKAGES = ("PIL", "skimage", "sklearn", "torchmetrics")
EVALUATED = {"validation": 48, "test": 256}  # crops at most; validation is seen often
PIXELS_AT_ONCE = 16 * 32 * 32  # in evaluation
SHOWN = 12  # crops in the exhibit
SHOWN_SIDE = 96  # of each, at least, in pixels of the picture


@dataclass(frozen=True)
class ImageSettings:
    """The part of a study's spec that only this task understands."""

    size: str
    batch_size: int
    loss: str
    data: str | None = None  # a folder of pictures, absolute; None for the built-in photographs
    inception: str | None = None  # a file with the weights of Inception, absolute


class ImageTask:
    """Implements `tasks.protocol.Task`."""

    def __init__(self, settings: ImageSettings, pictures: Pictures | None = None) -> None:
        self.settings = settings
        self.config = SIZES[settings.size]
        self.pixel_loss: PixelLoss = LOSSES[settings.loss]
        side = self.config.side
        self.pictures = pictures or (Photos(side) if settings.data is None else Folder(Path(settings.data), side))
        self.held_out = {split: self.pictures.held_out(cast(Split, split), most) for split, most in EVALUATED.items()}

    def describe_data(self) -> dict[str, Any]:
        return {
            "source": self.pictures.source,
            "how_split": self.pictures.how_split,
            "sha256": self.pictures.sha256,
            "sizes": dict(self.pictures.sizes),
            "evaluated_crops": {split: len(crops) for split, crops in self.held_out.items()},
        }

    def protocol(self, steps: int) -> list[str]:
        settings, config, data = self.settings, self.config, self.describe_data()
        with torch.device("meta"):
            parameters = sum(p.numel() for p in _model(settings).parameters())
        sizes = ", ".join(f"{part} {size}" for part, size in data["sizes"].items())
        seen, bits = steps * settings.batch_size, config.tokens * math.log2(config.codes)
        values = config.side**2 * CHANNELS
        return [
            f"Model “{settings.size}”: VQ-VAE, {parameters:,} parameters: a vision transformer of {config.layers} "
            f"layers of width {config.width} with {config.heads} heads encodes patches of {config.patch} x "
            f"{config.patch} pixels, one like it decodes; {config.codes:,} codes of {config.code_width} dimensions on "
            f"the unit sphere, so that {values:,} bytes of a crop go through {bits:,.0f} bits. No adversarial and no "
            "perceptual loss.",
            f"Data: {data['source']}; {sizes}; split {data['how_split']}; SHA-256 {data['sha256'][:16]}….",
            f"A training step sees {settings.batch_size} random crops of {config.side} x {config.side} pixels, half of "
            f"them mirrored; {steps} steps see {seen:,}.",
            f"Loss: {self.pixel_loss.words}, mean over values. To the training loss, and only to it, the quantisation "
            "loss of the codes is added. Losses of different kinds cannot be compared with one another.",
            f"Validation looks at {data['evaluated_crops']['validation']} crops, the test at "
            f"{data['evaluated_crops']['test']}. “Bits” are the code length of a value, where the loss gives one. The "
            "Fréchet distance is between features of a convolutional network with random weights: it is not an FID.",
            "Tiny models on a few photographs test the code and the direction of an effect, not the paper's figures.",
        ]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of our business
            torch.manual_seed(seed)
            return _model(self.settings, seed)

    def batch(self, seed: int, step: int) -> Batch:
        """(batch_size, 3, S, S) uint8: random crops of the training part, each mirrored or not."""
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        crops = self.pictures.draw(random, self.settings.batch_size)
        mirrored = random.random(len(crops)) < 0.5
        return (_stack([crop[:, ::-1] if turn else crop for crop, turn in zip(crops, mirrored, strict=True)]),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the pixel loss over values, plus the codebook's quantisation loss."""
        return reconstruction_loss(self.pixel_loss, model, batch[0])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """The mean of the pixel loss over values of a part's crops, without the quantisation loss."""
        total = 0.0
        with _at_rest(model):
            for images in self._batches(split, device):
                features, _, _ = model(_unit(images))  # (B, S, S, E)
                head = cast(VqVae, model).head
                total += self.pixel_loss.mean(head, features, _channels_last(images)).item() * len(images)
        return total / len(self.held_out[split])

    @torch.no_grad()
    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        """See `IMAGE.metrics`; bits only where the loss gives probabilities, FID only where Inception was given."""
        real, made, codes, bits = [], [], [], []
        with _at_rest(model):
            for images in self._batches(split, device):
                painted, chosen, parameters = self._paint(model, images)
                real.append(_unit(images))
                made.append(painted)
                codes.append(chosen)
                if self.pixel_loss.bits is not None:
                    bits.append(self.pixel_loss.bits(parameters, _channels_last(images)).mean((1, 2, 3)))
        originals, reconstructions = torch.cat(real), torch.cat(made)
        found = similarity(originals, reconstructions)
        if bits:
            found["bits"] = torch.cat(bits).mean().item()
        found["codes in use"] = perplexity(torch.cat(codes), self.config.codes)
        extractor = RandomConvNet().to(device)
        found["Fréchet, random net"] = frechet_distance(extractor, originals, reconstructions)
        if self.settings.inception is not None:
            found["FID"] = inception_distance(Path(self.settings.inception), originals, reconstructions)
        return found

    @torch.no_grad()
    def exhibits(self, model: nn.Module, device: torch.device) -> Iterable[Exhibit]:
        """Crops of the test part above what became of them."""
        crops = self.held_out["test"]
        shown = [crops[i * len(crops) // SHOWN] for i in range(SHOWN)] if len(crops) > SHOWN else crops
        with _at_rest(model):
            pairs = []
            for i in range(0, len(shown), self._at_once):
                images = _stack(shown[i : i + self._at_once]).to(device)
                pairs.append((images, (self._paint(model, images)[0] * 255).round().to(torch.uint8)))
        originals, painted = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
        title = "Crops of the test part (above) and their reconstructions (below)"
        return [Exhibit(title, "png", base64.b64encode(contact_sheet(originals, painted)).decode("ascii"))]

    def _paint(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) uint8 -> reconstructions (B, 3, S, S) in [0, 1], codes (B, T), parameters (B, S, S, 3, n)"""
        features, codes, _ = model(_unit(images))  # (B, S, S, E), (B, T)
        parameters = self.pixel_loss.parameters(cast(VqVae, model).head, features)  # (B, S, S, 3, n)
        return self.pixel_loss.decode(parameters).float().permute(0, 3, 1, 2).contiguous(), codes, parameters

    @property
    def _at_once(self) -> int:
        return max(1, PIXELS_AT_ONCE // self.config.side**2)

    def _batches(self, split: Split, device: torch.device) -> Iterator[Tensor]:
        crops = self.held_out[split]
        for i in range(0, len(crops), self._at_once):
            yield _stack(crops[i : i + self._at_once]).to(device)


def reconstruction_loss(pixel_loss: PixelLoss, model: nn.Module, images: Tensor) -> Tensor:
    """The training loss of a VQ-VAE: images (B, 3, S, S) uint8 -> ()"""
    features, _, quantisation = model(_unit(images))  # (B, S, S, E), (B, T), ()
    return pixel_loss.mean(cast(VqVae, model).head, features, _channels_last(images)) + quantisation


def contact_sheet(above: Tensor, below: Tensor) -> bytes:
    """A PNG of two rows of pictures, (N, 3, S, S) uint8 each, magnified without smoothing where they are small."""
    from PIL import Image

    scale, gap = max(1, SHOWN_SIDE // above.shape[-1]), 4
    large = torch.stack((above, below)).repeat_interleave(scale, -1).repeat_interleave(scale, -2)  # (2, N, 3, s, s)
    framed = nn.functional.pad(large, (0, gap, 0, gap), value=255)  # (2, N, 3, s + gap, s + gap)
    sheet = framed.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)[:-gap, :-gap]  # (height, width, 3)
    file = io.BytesIO()
    Image.fromarray(sheet.contiguous().numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Looking at a model must not count as a step of its codebook."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _stack(crops: list[Pixels]) -> Tensor:
    """(S, S, 3) each -> (N, 3, S, S) uint8"""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]"""
    return images.float() / 255


def _channels_last(images: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, S, S, 3) int64"""
    return images.permute(0, 2, 3, 1).long()


def _model(settings: ImageSettings, seed: int = 0) -> VqVae:
    return VqVae(SIZES[settings.size], CHANNELS * LOSSES[settings.loss].numbers, seed)


def _setup(asked: Asked) -> Setup:
    size = known("size", asked.size or "tiny", SCALES)
    inception = asked.set.get("inception")
    if inception is not None and not Path(inception).is_file():
        raise LabError(f"--set inception names a file with the weights of Inception; there is none at {inception}")
    if inception is not None and find_spec("torch_fidelity") is None:
        raise LabError("--set inception needs torch-fidelity; pip install torch-fidelity")
    settings = ImageSettings(
        size=size,
        batch_size=positive("--batch-size", asked.batch_size, SCALES[size].batch_size),
        loss=known("loss", asked.set.get("loss", "ce"), LOSSES),
        data=None if asked.data is None else str(asked.data.resolve()),
        inception=None if inception is None else str(Path(inception).resolve()),
    )
    return Setup(asdict(settings), SCALES[size].steps)


def _load(settings: Mapping[str, Any]) -> ImageTask:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:  # said now, and not after the first training
        raise LabError(f"the image task needs {', '.join(missing)}; pip install 'fisheropt[image]'")
    return ImageTask(ImageSettings(**settings))


def _outline(settings: Mapping[str, Any]) -> Outline:
    chosen = ImageSettings(**settings)
    side = SIZES[chosen.size].side
    with torch.device("meta"):
        model = _model(chosen)
        images = torch.empty(chosen.batch_size, CHANNELS, side, side, dtype=torch.uint8)
    loss = LOSSES[chosen.loss]
    words = f"{chosen.batch_size} crops of {side} x {side} pixels"
    return Outline(model, lambda net: reconstruction_loss(loss, net, images), words)


IMAGE = TaskKind(
    about="a small VQ-VAE on photographs",
    units=(Unit("nats/value", 1.0), Unit("bits/value", 1 / math.log(2))),
    optimizers="adamw,fadam",
    options=frozenset({"size", "batch_size", "data", "loss", "inception"}),
    setup=_setup,
    load=_load,
    outline=_outline,
    sizes=tuple(SCALES),
    metrics=(
        Metric("PSNR", "dB", 1.0, 2, higher_is_better=True),
        Metric("SSIM", "", 1.0, 3, higher_is_better=True),
        Metric("L2", "x 1000", 1000.0, 2),
        Metric("bits", "per value", 1.0, 3),
        Metric("codes in use", "(perplexity)", 1.0, 0, higher_is_better=True),
        Metric("Fréchet, random net", "", 1.0, 4),
    ),
    quick={"batch_size": 4},
    losses={
        "cross-entropy": {"loss": "ce"},
        "L2 + logit-Laplace": {"loss": "l2+logit-laplace"},
        "L2": {"loss": "l2"},
    },
)
