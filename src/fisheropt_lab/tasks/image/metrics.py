"""How close reconstructions are to their images, picture by picture and as a population.

Images are float32 in [0, 1], (N, 3, S, S).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

EXTRACTOR_SEED = 0
INCEPTION_WIDTH = 2048


class RandomConvNet(nn.Module):
    """Three convolutions of stride 2 with random weights that never change, and what they see on average: 64 features.

    Random features notice colour, edges and texture, and know nothing of what a picture shows. A distance between them
    orders reconstructions of one study and means nothing outside of it; it is not an FID.
    """

    num_features = 64  # torchmetrics asks for it

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(EXTRACTOR_SEED)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 16), (16, 32), (32, 64)))
        for layer in self.layers:
            fan_in = layer.weight[0].numel()
            layer.weight.data.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            layer.bias.data.normal_(std=0.1, generator=generator)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, 64)"""
        x = 4 * images - 2  # (N, 3, S, S)
        for layer in self.layers:
            x = nn.functional.relu(layer(x))  # (N, 16, S/2, S/2), (N, 32, S/4, S/4), (N, 64, S/8, S/8)
        return x.mean(dim=(2, 3))  # (N, 64)


def frechet_distance(extractor: nn.Module, real: Tensor, made: Tensor) -> float:
    """The Frechet distance of two normal distributions, those with the moments of the features of two populations."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    return _distance(FrechetInceptionDistance(feature=extractor, normalize=True), real, made)


def inception_distance(weights: Path, real: Tensor, made: Tensor) -> float:
    """The same on Inception's features, FID: torch-fidelity's network, with its weights from a file on disk."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(INCEPTION_WIDTH, normalize=True, feature_extractor_weights_path=str(weights))
    return _distance(metric, real, made)


def _distance(metric: nn.Module, real: Tensor, made: Tensor) -> float:
    metric.to(real.device)
    metric.update(real, real=True)  # type: ignore[operator]
    metric.update(made, real=False)  # type: ignore[operator]
    return float(metric.compute())  # type: ignore[operator]


def similarity(real: Tensor, made: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM, means over pictures, and L2, the mean squared error of a value."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    psnr = peak_signal_noise_ratio(made, real, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    ssim = structural_similarity_index_measure(made, real, data_range=1.0)
    return {"PSNR": float(psnr), "SSIM": float(ssim), "L2": nn.functional.mse_loss(made, real).item()}
