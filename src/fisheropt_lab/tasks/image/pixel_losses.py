"""What a reconstruction is held against its image by: the contrast of arXiv:2405.12807, Section 4.3 and Figure 1c.

Every loss takes the features that the model has of each pixel and the model's last layer, and differs in nothing but
the numbers that this layer puts out and what they mean.

Shape letters: B images, S side of an image, E features per pixel, C = 3 channels, n numbers per channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisheropt.losses import LogitLaplace, PixelCategorical, pixel_cross_entropy

Head = Callable[[Tensor], Tensor]
CHANNELS = 3
VALUES = 256
CHUNK = 2048  # pixels whose logits exist at once in training
LOGIT_LAPLACE_WEIGHT = 0.1  # beside 1 for the squared error, as in ViT-VQGAN
GREY_LEVEL = 1 / (VALUES - 1)  # of pixels in [0, 1]


@dataclass(frozen=True)
class PixelLoss:
    """One arm of the contrast. Images are values, integers from 0 to 255, (B, S, S, C)."""

    numbers: int  # n
    mean: Callable[[Head, Tensor, Tensor], Tensor]  # last layer, features (B, S, S, E), values -> ()
    decode: Callable[[Tensor], Tensor]  # (B, S, S, C, n) -> pixels in [0, 1], (B, S, S, C)
    bits: Callable[[Tensor, Tensor], Tensor] | None  # (B, S, S, C, n), values -> code length (B, S, S, C), if any
    words: str

    def parameters(self, head: Head, features: Tensor) -> Tensor:
        """What the last layer says of each channel of each pixel: (B, S, S, E) -> (B, S, S, C, n)"""
        return head(features).unflatten(-1, (CHANNELS, self.numbers))


def _cross_entropy(head: Head, features: Tensor, values: Tensor) -> Tensor:
    return pixel_cross_entropy(head, features, values, bins=VALUES, chunk_size=CHUNK)


def _decode_cross_entropy(logits: Tensor) -> Tensor:
    return PixelCategorical(VALUES).decode(logits) * GREY_LEVEL


def _bits_of_cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    return PixelCategorical(VALUES).nll(logits, values) / math.log(2)


def _squared(head: Head, features: Tensor, values: Tensor) -> Tensor:
    return nn.functional.mse_loss(head(features).float(), values * GREY_LEVEL)


def _decode_squared(output: Tensor) -> Tensor:
    return output.squeeze(-1).clamp(0, 1)


def _logit_laplace(head: Head, features: Tensor, values: Tensor) -> Tensor:
    params = head(features).unflatten(-1, (CHANNELS, 2))  # (B, S, S, C, 2)
    return LogitLaplace().nll(params, values * GREY_LEVEL).mean()


def _both(head: Head, features: Tensor, values: Tensor) -> Tensor:
    """The squared error is of the median before it is drawn into [0, 1]: beyond the ends it still has a gradient."""
    params = head(features).unflatten(-1, (CHANNELS, 2)).float()  # (B, S, S, C, 2)
    pixels, likelihood = values * GREY_LEVEL, LogitLaplace()
    median = (torch.sigmoid(params[..., 0]) - likelihood.eps) / (1 - 2 * likelihood.eps)  # (B, S, S, C)
    squared = nn.functional.mse_loss(median, pixels)  # ()
    return squared + LOGIT_LAPLACE_WEIGHT * likelihood.nll(params, pixels).mean()


def bits_of_logit_laplace(params: Tensor, values: Tensor) -> Tensor:
    """The code length of values under the probabilities that a logit-Laplace density gives to their grey levels.

    A value owns the interval of one grey level around it, those of 0 and 255 what lies beyond as well, so that the 256
    probabilities sum to one and the length can be held against that of a categorical distribution. In logarithms, so
    that improbable values have a length and not infinity: (..., 2), (...) -> (...), bits
    """
    likelihood, values = LogitLaplace(), values.double()
    mu, b = params[..., 0].double(), params[..., 1].double().clamp(min=likelihood.min_log_scale).exp()

    def position(x: Tensor) -> Tensor:
        return (torch.logit((1 - 2 * likelihood.eps) * x + likelihood.eps) - mu) / b

    low = torch.where(values == 0, -math.inf, position((values - 0.5) * GREY_LEVEL))
    high = torch.where(values == VALUES - 1, math.inf, position((values + 0.5) * GREY_LEVEL))
    mirrored = low + high > 0  # the median is in the lower half: the same interval, seen from the other side
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    below = high.clamp(max=0) + torch.log1p(-torch.exp(low - high.clamp(max=0))) - math.log(2)  # all left of the median
    across = torch.log1p(-(torch.exp(low.clamp(max=0)) + torch.exp(-high.clamp(min=0))) / 2)  # the median inside
    return -torch.where(high <= 0, below, across) / math.log(2)


LOSSES: dict[str, PixelLoss] = {
    "ce": PixelLoss(
        VALUES,
        _cross_entropy,
        _decode_cross_entropy,
        _bits_of_cross_entropy,
        "cross-entropy over the 256 values of each channel, in nats; pixels are painted by the mean of the "
        "distribution",
    ),
    "l2+logit-laplace": PixelLoss(
        2,
        _both,
        LogitLaplace().decode,
        bits_of_logit_laplace,
        f"squared error of pixels in [0, 1] plus {LOGIT_LAPLACE_WEIGHT:g} times the nats of a logit-Laplace density, "
        "as in ViT-VQGAN: a sum of two units; pixels are painted by the median",
    ),
    "logit-laplace": PixelLoss(
        2,
        _logit_laplace,
        LogitLaplace().decode,
        bits_of_logit_laplace,
        "logit-Laplace density of pixels in [0, 1], in nats, which may be negative; pixels are painted by the median",
    ),
    "l2": PixelLoss(
        1,
        _squared,
        _decode_squared,
        None,
        "squared error of pixels in [0, 1]: the nats of a normal distribution of variance 1/2, but for a constant",
    ),
}
