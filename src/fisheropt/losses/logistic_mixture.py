"""The discretized mixture of logistics (Salimans et al. 2017, *PixelCNN++*, arXiv:1701.05517, Section 2.1 and 2.2).

A value v in {0, ..., bins - 1} lies at x = 2 v/(bins - 1) - 1 and owns the interval of half width h = 1/(bins - 1)
around it; those of the first and the last value reach to infinity, so that the probabilities sum to one. For a
component of mean mu and scale s, with sigmoid the distribution function of a logistic variable::

    P(v) = sigmoid((x + h - mu)/s) - sigmoid((x - h - mu)/s)

The difference is taken without cancellation: with a = (x + h - mu)/s and a - b = 2 h/s,

    log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(-(a - b)))

which holds for every finite a and b; no second formula is switched to where probabilities are small. Of several
channels each depends linearly on the values of those before it (Equation 3 of the paper):
mu_j = m_j + sum over i < j of c_ji x_i with c = tanh of a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from fisheropt.losses.likelihood import Likelihood, check_floor, sample_index

__all__ = ["DiscretizedLogisticMixture", "discretized_logistic_mixture"]


def discretized_logistic_mixture(
    value: Tensor, logits: Tensor, mu: Tensor, log_scale: Tensor, bins: int = 256
) -> Tensor:
    """``-log P`` of values in nats, (..., C) -> (...): one mixture for the C channels of a pixel.

    Args:
        value: (..., C), integers in [0, bins).
        logits: of the components, (..., K).
        mu: means of the components for each channel, on the scale from -1 to 1, (..., K, C).
        log_scale: logarithms of their scales, (..., K, C).
        bins: number of values.
    """
    x = _position(value.to(mu), bins).unsqueeze(-2)  # (..., 1, C)
    v = value.unsqueeze(-2)
    half = 1.0 / (bins - 1)
    a = (x + half - mu) * torch.exp(-log_scale)  # (..., K, C)
    b = (x - half - mu) * torch.exp(-log_scale)
    below_upper = torch.where(v >= bins - 1, 0.0, logsigmoid(a))  # the last interval has no upper end
    above_lower = torch.where(v <= 0, 0.0, logsigmoid(-b))  # the first no lower one
    inner = (v > 0) & (v < bins - 1)
    both = torch.where(inner, _log1mexp(math.log(2 * half) - log_scale), 0.0)
    log_probability = (below_upper + above_lower + both).sum(-1)  # (..., K)
    return -torch.logsumexp(torch.log_softmax(logits, -1) + log_probability, -1)


def _position(value: Tensor, bins: int) -> Tensor:
    return value * (2.0 / (bins - 1)) - 1.0


def _log1mexp(log_delta: Tensor) -> Tensor:
    """``log(1 - exp(-delta))`` from the logarithm of delta > 0, which may be too small for delta itself."""
    small = log_delta < math.log(1e-3)
    delta = torch.exp(torch.where(small, 0.0, log_delta).clamp(max=6.0))  # exp(-exp(6)) is nothing
    series = torch.exp(torch.where(small, log_delta, -math.inf))  # log(1 - e^-d) = log d - d/2 + d^2/24 - ...
    wide = torch.where(delta < math.log(2.0), torch.log(-torch.expm1(-delta)), torch.log1p(-torch.exp(-delta)))
    return torch.where(small, log_delta - series / 2 + series.square() / 24, wide)


@dataclass(frozen=True)
class DiscretizedLogisticMixture(Likelihood):
    """K components. Params of one pixel: K logits, then K C means, K C log scales, and K C (C - 1)/2 couplings.

    With ``channels=None`` a target is one number, (...), and has 3 K params. With ``channels=C`` a target is a pixel,
    (..., C), whose channels share the components: 10 K params for C = 3, as in the paper; ``nll`` is (...) then, of a
    whole pixel.

    Args:
        components: K >= 1.
        channels: None, or C >= 1.
        bins: number of values, >= 2; targets are integers in [0, bins).
        min_log_scale: floor of the log scales, in [-30, 0], on the scale from -1 to 1.
    """

    components: int = 10
    channels: int | None = None
    bins: int = 256
    min_log_scale: float = -7.0

    discrete: ClassVar[bool] = True
    soft_targets: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value, least in (("components", self.components, 1), ("bins", self.bins, 2)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value!r}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be None or >= 1, got {self.channels!r}")
        check_floor(self.min_log_scale)

    @property
    def num_parameters(self) -> int:
        C = self.channels or 1
        return self.components * (1 + 2 * C + C * (C - 1) // 2)

    def target_shape(self, params: Tensor) -> torch.Size:
        return params.shape[:-1] if self.channels is None else torch.Size((*params.shape[:-1], self.channels))

    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        params = self.checked(params, target)
        value = target if self.channels is not None else target.unsqueeze(-1)  # (..., C)
        logits, m, log_scale, c = self._split(params)
        mu = self._means(m, c, _position(value.to(m), self.bins).unsqueeze(-2).expand_as(m))
        return discretized_logistic_mixture(value, logits, mu, log_scale, self.bins)

    def sample(self, params: Tensor, generator: Generator | None = None) -> Tensor:
        logits, m, log_scale, c = self._split(self.checked(params))
        chosen = sample_index(logits, generator)[..., None, None]  # one component for the whole pixel
        m, log_scale, c = (torch.take_along_dim(t, chosen, -2) for t in (m, log_scale, c))  # (..., 1, C)
        u = torch.rand(m.shape, generator=generator, dtype=m.dtype, device=m.device)
        tiny = torch.finfo(m.dtype).tiny
        noise = torch.exp(log_scale) * (torch.log(u.clamp(min=tiny)) - torch.log1p(-u))
        x = torch.zeros_like(m)
        for j in range(m.shape[-1]):  # each channel sees the values before it, after they were rounded
            drawn = self._means(m, c, x)[..., j] + noise[..., j]
            v = torch.round((drawn + 1) * ((self.bins - 1) / 2)).clamp(0, self.bins - 1)
            x[..., j] = _position(v, self.bins)
        value = torch.round((x + 1) * ((self.bins - 1) / 2)).long().squeeze(-2)
        return value if self.channels is not None else value.squeeze(-1)

    def decode(self, params: Tensor) -> Tensor:
        """The mean. It is exact for one channel, and for the first of several; the others take the mean of those
        before them in place of their values, which is exact but for rounding and for what lies beyond the ends."""
        logits, m, log_scale, c = self._split(self.checked(params))
        ends = _position(torch.arange(1, self.bins, dtype=m.dtype, device=m.device), self.bins) - 1.0 / (self.bins - 1)
        mean = torch.zeros_like(m)  # (..., K, C), on the scale from -1 to 1
        x = torch.zeros_like(m)
        for j in range(m.shape[-1]):
            mu = self._means(m, c, x)[..., j]
            over = torch.sigmoid((mu.unsqueeze(-1) - ends) * torch.exp(-log_scale[..., j, None]))  # P(v >= 1, 2, ...)
            mean[..., j] = over.sum(-1)  # E v = sum of P(v >= i)
            x = _position(mean, self.bins)
        value = (torch.softmax(logits, -1).unsqueeze(-1) * mean).sum(-2)
        return value if self.channels is not None else value.squeeze(-1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (..., K), m and log scales (..., K, C), couplings (..., K, C (C - 1)/2)."""
        K, C = self.components, self.channels or 1
        logits, m, log_scale, c = torch.split(params, [K, K * C, K * C, K * C * (C - 1) // 2], -1)
        m, log_scale, c = (t.reshape(*t.shape[:-1], K, t.shape[-1] // K) for t in (m, log_scale, c))
        return logits, m, log_scale.clamp(min=self.min_log_scale), torch.tanh(c)

    @staticmethod
    def _means(m: Tensor, c: Tensor, x: Tensor) -> Tensor:
        """``mu_j = m_j + sum over i < j of c_ji x_i``; the couplings lie row by row: c_10, c_20, c_21, ..."""
        columns = []
        for j in range(m.shape[-1]):
            row = c[..., j * (j - 1) // 2 : j * (j + 1) // 2]
            columns.append(m[..., j] + (row * x[..., :j]).sum(-1))
        return torch.stack(columns, -1)
