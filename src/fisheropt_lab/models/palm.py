"""A small decoder language model in the style of PaLM, the one the FAdam paper trains in its Section 4.1.

One block computes attention and feed-forward side by side from the same normalised input and adds both to the
residual stream. All query heads share a single key/value head (multi-query attention), positions enter by rotating
queries and keys (RoPE), the feed-forward is SwiGLU, the norm is RMSNorm before the block, there are no biases, and
the output layer is the embedding matrix again.

Shape letters, used in the comment on every line:

    B  sequences in the batch        D  model width            H  query heads
    T  positions in a sequence       F  feed-forward width     K  width of one head (D = H K)
    V  vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PalmConfig:
    """Widths and depths of one model; `SIZES` holds the named ones."""

    layers: int
    width: int  # D
    heads: int  # H
    vocabulary: int = 256  # V: bytes

    @property
    def head_width(self) -> int:
        """K. Even, because RoPE rotates the two halves of a head against each other."""
        return self.width // self.heads

    @property
    def feed_forward(self) -> int:
        """F, four times the model width as in PaLM."""
        return 4 * self.width


SIZES: dict[str, PalmConfig] = {  # parameters, all trainable; a test counts them
    "tiny": PalmConfig(layers=4, width=128, heads=4),  # 984,192
    "small": PalmConfig(layers=6, width=384, heads=6),  # 12,782,208
    "base": PalmConfig(layers=12, width=768, heads=12),  # 100,476,672
    "1b": PalmConfig(layers=18, width=2048, heads=16),  # 1,066,964,992
}


class RMSNorm(nn.Module):
    """x / rms(x), times a learned gain per channel; no mean is subtracted and no bias added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return nn.functional.rms_norm(x, self.gain.shape, self.gain, eps=1e-6)


class Rotary(nn.Module):
    """Rotary position embedding: position t turns the pair (x_i, x_{i + K/2}) by the angle t * 10000^(-2i/K).

    A turn by t on the query and by s on the key leaves a score that depends on t - s only.
    """

    frequency: Tensor  # (K/2,) radians per position

    def __init__(self, head_width: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)  # (K/2,)
        self.register_buffer("frequency", frequency, persistent=False)

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of every angle, each (T, K/2)."""
        t = torch.arange(positions, device=self.frequency.device)  # (T,)
        angle = t[:, None] * self.frequency  # (T, K/2)
        return angle.cos(), angle.sin()  # (T, K/2), (T, K/2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the halves of the last axis against each other: (B, H, T, K) with (T, K/2) tables -> (B, H, T, K)."""
    a, b = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (B, H, T, K)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feed_forward(norm(x)), the two branches side by side."""

    def __init__(self, config: PalmConfig) -> None:
        super().__init__()
        D, K, F = config.width, config.head_width, config.feed_forward
        self.heads = config.heads
        self.norm = RMSNorm(D)
        self.query = nn.Linear(D, D, bias=False)
        self.key_value = nn.Linear(D, 2 * K, bias=False)  # one key head and one value head for all H queries
        self.attention_out = nn.Linear(D, D, bias=False)
        self.gate = nn.Linear(D, F, bias=False)
        self.up = nn.Linear(D, F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        h = self.norm(x)  # (B, T, D)
        return x + self.attend(h, cos, sin) + self.feed_forward(h)  # (B, T, D)

    def attend(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal multi-query attention: (B, T, D) -> (B, T, D)"""
        q = self.query(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, K)
        k, v = self.key_value(h).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, T, K) each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # (B, H, T, K), (B, 1, T, K)
        k, v = k.expand_as(q), v.expand_as(q)  # (B, H, T, K) each, a view: nothing is copied
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, K)
        out: Tensor = self.attention_out(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return out

    def feed_forward(self, h: Tensor) -> Tensor:
        """SwiGLU: (B, T, D) -> (B, T, D)"""
        out: Tensor = self.down(nn.functional.silu(self.gate(h)) * self.up(h))  # (B, T, F) inside, (B, T, D) out
        return out


class Palm(nn.Module):
    """The whole decoder: bytes in, logits over the next byte out."""

    def __init__(self, config: PalmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)  # (V, D), also the output layer
        self.rotary = Rotary(config.head_width)
        self.blocks = nn.ModuleList(ParallelBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.output = nn.Linear(config.width, config.vocabulary, bias=False, device="meta")  # without random numbers
        self.output.weight = self.embedding.weight  # a layer of its own all the same: AdaFisher looks at layers
        self.initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), integers below V -> logits (B, T, V); position t sees tokens 0..t only."""
        cos, sin = self.rotary.table(tokens.shape[1])  # (T, K/2), (T, K/2)
        x = self.embedding(tokens)  # (B, T, D)
        for block in self.blocks:
            x = block(x, cos, sin)  # (B, T, D)
        logits: Tensor = self.output(self.norm(x))  # (B, T, V)
        return logits

    @torch.no_grad()
    def initialise(self) -> None:
        """Normal weights of variance 1/fan-in; the two branches that write to the residual stream are scaled down by
        sqrt(2 layers), so that its variance does not grow with depth. The embedding gets 1/D for the logits' sake."""
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for block in self.blocks:
            for name, layer in block.named_children():
                if isinstance(layer, nn.Linear):
                    writes = name in ("attention_out", "down")
                    gain = (2 * self.config.layers) ** -0.5 if writes else 1.0
                    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
