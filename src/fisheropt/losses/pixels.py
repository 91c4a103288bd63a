"""Pixels as classes: a categorical distribution over the 256 values of every channel (PixelRNN, arXiv:1601.06759).

The logits are 256 numbers for every byte of an image: 200 MB in float32 for one 256 x 256 picture of three channels,
as much again for their gradient. `pixel_cross_entropy` never has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from fisheropt.losses.likelihood import Likelihood, sample_index, widened

__all__ = ["PixelCategorical", "pixel_cross_entropy"]

_REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class PixelCategorical(Likelihood):
    """One probability per value, nothing assumed about their order. Targets: integers in [0, bins).

    Args:
        bins: values of a pixel, >= 2.
    """

    bins: int = 256

    discrete: ClassVar[bool] = True
    soft_targets: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be >= 2, got {self.bins!r}")

    @property
    def num_parameters(self) -> int:
        return self.bins

    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        logits = self.checked(params, target)
        losses = cross_entropy(logits.reshape(-1, self.bins), target.long().reshape(-1), reduction="none")
        return losses.reshape(target.shape)

    def sample(self, params: Tensor, generator: Generator | None = None) -> Tensor:
        return sample_index(self.checked(params), generator)

    def decode(self, params: Tensor) -> Tensor:
        logits = self.checked(params)
        return torch.softmax(logits, -1) @ torch.arange(self.bins, dtype=logits.dtype, device=logits.device)


def pixel_cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    target: Tensor,
    *,
    bins: int = 256,
    chunk_size: int = 256,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """The cross-entropy of pixels, with the logits of ``chunk_size`` pixels at a time, forward and backward.

    The last layer runs inside: its output is thrown away after each chunk and computed again when its gradient is
    due. That costs one more pass of the last layer (a third more of its work) and saves memory of
    ``pixels * channels * bins`` numbers, twice.

    Args:
        head: the last layer, (n, D) -> (n, C * bins), channel by channel. It may hold parameters, and must treat rows
            independently of one another: no BatchNorm.
        hidden: what goes into it, one row per pixel, (..., D).
        target: values of the C channels of each pixel, integers in [0, bins) or ``ignore_index``, (..., C).
        bins: values of a channel.
        chunk_size: rows of ``hidden`` whose logits may exist at once, >= 1.
        ignore_index: targets of this value count neither in the sum nor in the mean (padding, masked pixels).
        reduction: "mean" over the targets that count (NaN if there are none, as torch's `cross_entropy`), or "sum".

    Returns:
        A scalar in nats, float32 or wider.

    Raises:
        ValueError: shapes that do not fit, or an option out of its range.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}; PixelCategorical().nll has each loss")
    if hidden.dim() < 2 or target.dim() < 1 or hidden.shape[:-1] != target.shape[:-1]:
        raise ValueError(
            f"hidden (..., D) and target (..., C) must agree but for the last dimension, "
            f"got {tuple(hidden.shape)} and {tuple(target.shape)}"
        )
    rows, wanted = hidden.reshape(-1, hidden.shape[-1]), target.long().reshape(-1, target.shape[-1])

    def total(x: Tensor, y: Tensor) -> Tensor:
        logits = head(x)
        if logits.shape != (len(x), y.shape[1] * bins):
            raise ValueError(
                f"head must map (n, {x.shape[1]}) to (n, channels * bins) = (n, {y.shape[1] * bins}), "
                f"got {tuple(logits.shape)} for n = {len(x)}"
            )
        logits = widened(logits).reshape(-1, bins)
        return cross_entropy(logits, y.reshape(-1), ignore_index=ignore_index, reduction="sum")

    chunks = zip(torch.split(rows, chunk_size), torch.split(wanted, chunk_size), strict=True)
    nats = torch.stack([checkpoint(total, x, y, use_reentrant=False) for x, y in chunks]).sum()
    return nats if reduction == "sum" else nats / (wanted != ignore_index).sum()
