"""Log-mel features of speech, and SpecAugment."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

RATE = 16_000  # samples per second
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
FRAMES_PER_SECOND = RATE // HOP
LOW_HZ, HIGH_HZ = 20.0, 7_600.0


def mel_filters(mels: int) -> Tensor:
    """Triangles on the mel scale, each summing to about one: (FFT / 2 + 1, mels).

    mel(f) = 2595 log10(1 + f / 700), the scale of the HTK toolkit.
    """
    hertz = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)  # (FFT/2+1,)
    edges = torch.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)  # (mels+2,), in hertz
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]  # (mels,) each
    up = (hertz[:, None] - left) / (centre - left)  # (FFT/2+1, mels)
    down = (right - hertz[:, None]) / (right - centre)  # (FFT/2+1, mels)
    triangles = torch.minimum(up, down).clamp_(min=0)
    return (triangles / triangles.sum(0).clamp(min=1e-9)).float()


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def log_mel(samples: Tensor, filters: Tensor) -> Tensor:
    """(samples,) -> (frames, mels): log of the power in each band, brought to mean 0 and variance 1 in each."""
    padded = samples if len(samples) >= FFT else torch.nn.functional.pad(samples, (0, FFT - len(samples)))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, FFT, HOP, WINDOW, window, return_complex=True)  # (FFT/2+1, frames)
    power = spectrum.abs().square().T @ filters  # (frames, mels)
    logs = power.clamp(min=1e-8).log()
    return (logs - logs.mean(0)) / (logs.std(0) + 1e-3)


def spec_augment(
    features: Tensor,
    random: np.random.Generator,
    bands: int = 2,
    band_share: float = 0.2,
    spans: int = 2,
    span_share: float = 0.05,
) -> Tensor:
    """Bands of mels and spans of time set to 0, their mean (Park et al. 2019, without time warping).

    Args:
        features: (frames, mels); not changed.
        random: decides where.
        bands, band_share: number of bands, and the largest width of one as a share of the mels.
        spans, span_share: number of spans, and the longest as a share of the frames.
    """
    out = features.clone()
    frames, mels = out.shape
    for axis, count, size, share in ((1, bands, mels, band_share), (0, spans, frames, span_share)):
        for _ in range(count):
            width = int(random.integers(0, int(share * size), endpoint=True))
            start = int(random.integers(0, size - width, endpoint=True))
            out.narrow(axis, start, width).zero_()
    return out
