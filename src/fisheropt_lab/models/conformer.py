"""A Conformer encoder (Gulati et al. 2020), the one the FAdam paper trains in its Section 4.2.

Audio features are thinned out by four in time; then every block is half a feed-forward, self-attention with relative
positions, a convolution module and the other half of a feed-forward, each added to the residual stream. Frames beyond
the end of an utterance never reach one inside, so an utterance gives the same numbers in any batch: the normalisation
in the convolution module is therefore over channels, where the paper's is over the batch.

Shape letters, used in the comment on every line:

    B  utterances in the batch       M  mel bands               H  heads
    S  frames of the features        D  model width             K  width of one head (D = H K)
    T  frames after thinning out     F  feed-forward width
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ConformerConfig:
    """Widths and depths of one encoder; `SIZES` holds the named ones."""

    layers: int
    width: int  # D
    heads: int  # H
    mels: int  # M
    kernel: int  # frames the convolution module sees, odd
    channels: int  # of the two convolutions that thin out

    @property
    def feed_forward(self) -> int:
        """F, four times the width as in the paper."""
        return 4 * self.width


SIZES: dict[str, ConformerConfig] = {  # parameters of the encoder; a test counts them
    "tiny": ConformerConfig(layers=3, width=96, heads=4, mels=40, kernel=15, channels=32),
    "small": ConformerConfig(layers=16, width=144, heads=4, mels=80, kernel=31, channels=144),  # "S" of the paper
    "base": ConformerConfig(layers=16, width=256, heads=4, mels=80, kernel=31, channels=256),  # "M"
    "large": ConformerConfig(layers=17, width=512, heads=8, mels=80, kernel=31, channels=512),  # "L"
    "600m": ConformerConfig(layers=24, width=1024, heads=8, mels=80, kernel=5, channels=128),  # "XL", Zhang et al. 2020
}


class ThinOut(nn.Module):
    """Two 3 x 3 convolutions of stride 2 over time and frequency, and a projection: four frames become one."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        C = config.channels
        self.first = nn.Conv2d(1, C, 3, stride=2, padding=1)
        self.second = nn.Conv2d(C, C, 3, stride=2, padding=1)
        self.project = nn.Linear(C * _halved(_halved(config.mels)), config.width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, M) and frames (B,) -> (B, T, D) and frames (B,)"""
        y = x.unsqueeze(1)  # (B, 1, S, M)
        for convolution in (self.first, self.second):
            y = y.masked_fill(~_inside(lengths, y.shape[2])[:, None, :, None], 0.0)  # what padding would be
            y = nn.functional.relu(convolution(y))  # (B, C, S/2, M/2), then (B, C, T, M/4)
            lengths = (lengths + 1) // 2
        return self.project(y.transpose(1, 2).flatten(2)), lengths  # (B, T, C M/4) -> (B, T, D)


class FeedForward(nn.Sequential):
    """Norm, widen by four, swish, back: (B, T, D) -> (B, T, D)"""

    def __init__(self, config: ConformerConfig) -> None:
        D, F = config.width, config.feed_forward
        super().__init__(nn.LayerNorm(D), nn.Linear(D, F), nn.SiLU(), nn.Linear(F, D))


class RelativeAttention(nn.Module):
    """Self-attention whose scores also depend on the distance of query and key (Dai et al. 2019, Section 3.3).

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . r_(i-j)) / sqrt(K), with r a projection of sines of the distance and
    u, v learned per head.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(D)
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.distance = nn.Linear(D, D, bias=False)
        self.out = nn.Linear(D, D)
        self.content_bias = nn.Parameter(torch.zeros(config.heads, 1, D // config.heads))  # u: (H, 1, K)
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, 1, D // config.heads))  # v: (H, 1, K)

    def forward(self, x: Tensor, waves: Tensor, inside: Tensor) -> Tensor:
        """(B, T, D), the waves of the distances (2T-1, D) and the frames that count (B, T) -> (B, T, D)"""
        h = self.norm(x)  # (B, T, D)
        q, k, v = (self._heads(layer(h)) for layer in (self.query, self.key, self.value))  # (B, H, T, K) each
        r = self._heads(self.distance(waves).unsqueeze(0))  # (1, H, 2T-1, K)
        far = _by_key((q + self.distance_bias) @ r.transpose(-1, -2))  # (B, H, T, T)
        bias = far / math.sqrt(q.shape[-1])  # (B, H, T, T)
        bias = bias.masked_fill(~inside[:, None, None, :], -math.inf)
        y = nn.functional.scaled_dot_product_attention(q + self.content_bias, k, v, attn_mask=bias)  # (B, H, T, K)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _by_key(scores: Tensor) -> Tensor:
    """From scores by distance T-1 .. -(T-1) to scores by key: (B, H, T, 2T-1) -> (B, H, T, T).

    Row i holds its distance to key j at column T - 1 - i + j; a reshape moves every row into place.
    """
    B, H, T, _ = scores.shape
    padded = nn.functional.pad(scores, (1, 0)).reshape(B, H, 2 * T, T)  # (B, H, 2T, T)
    return padded[:, :, 1:].reshape(B, H, T, 2 * T - 1)[..., :T]  # (B, H, T, T)


def distance_waves(T: int, D: int, device: torch.device) -> Tensor:
    """Sines and cosines of the distances T-1 .. -(T-1): (2T-1, D)"""
    distance = torch.arange(T - 1, -T, -1, device=device, dtype=torch.float32)  # (2T-1,)
    frequency = 10_000.0 ** (-torch.arange(0, D, 2, device=device) / D)  # (D/2,)
    angle = distance[:, None] * frequency  # (2T-1, D/2)
    return torch.cat((angle.sin(), angle.cos()), -1)  # (2T-1, D)


class Convolution(nn.Module):
    """Norm, gated linear unit, a convolution per channel over time, norm, swish, projection."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        D = config.width
        self.norm = nn.LayerNorm(D)
        self.gate = nn.Linear(D, 2 * D)  # a convolution over one frame
        self.depthwise = nn.Conv1d(D, D, config.kernel, padding=config.kernel // 2, groups=D)
        self.middle_norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """(B, T, D) and the frames that count (B, T) -> (B, T, D)"""
        y = nn.functional.glu(self.gate(self.norm(x)), dim=-1)  # (B, T, D)
        y = y.masked_fill(~inside[..., None], 0.0)  # what padding would be
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)  # (B, T, D)
        out: Tensor = self.out(nn.functional.silu(self.middle_norm(y)))  # (B, T, D)
        return out


class ConformerBlock(nn.Module):
    """x + FF/2, + attention, + convolution, + FF/2, norm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.before = FeedForward(config)
        self.attention = RelativeAttention(config)
        self.convolution = Convolution(config)
        self.after = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, waves: Tensor, inside: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + 0.5 * self.before(x)  # (B, T, D)
        x = x + self.attention(x, waves, inside)  # (B, T, D)
        x = x + self.convolution(x, inside)  # (B, T, D)
        x = x + 0.5 * self.after(x)  # (B, T, D)
        out: Tensor = self.norm(x)  # (B, T, D)
        return out


class Conformer(nn.Module):
    """Features in, a vector for every fourth frame out."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.thin_out = ThinOut(config)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, S, M) and their frames (B,) -> (B, T, D) and frames (B,), T = ceil(S / 4)"""
        x, lengths = self.thin_out(features, lengths)  # (B, T, D), (B,)
        inside = _inside(lengths, x.shape[1])  # (B, T)
        waves = distance_waves(x.shape[1], self.config.width, x.device).to(x.dtype)  # (2T-1, D)
        for block in self.blocks:
            x = block(x, waves, inside)  # (B, T, D)
        return x, lengths


def _inside(lengths: Tensor, frames: int) -> Tensor:
    """Which of so many frames belong to each utterance: (B,) -> (B, frames)"""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def _halved(size: int) -> int:
    """What a convolution of stride 2 leaves."""
    return (size + 1) // 2
