"""A VQ-VAE of two vision transformers, the kind the FAdam paper trains in its Section 4.3: ViT-VQGAN (Yu et al. 2021,
arXiv:2110.04627) without its adversarial and its perceptual loss.

A transformer turns the patches of an image into vectors, each is replaced by the nearest of V codes, and a second
transformer paints the image from the codes. As in that paper the search is factorised (in a space of d dimensions, far
fewer than the model's width) and on the unit sphere (latents and codes are divided by their length). One thing is not
in that paper: before that, latents are whitened over the batch (`Whiten`). Before the
decoder has learnt to use codes, the encoder hears little but the commitment loss, which draws latents to one point.

Shape letters, used in the comment on every line:

    B  images in the batch           D  model width             V  codes
    S  side of an image, pixels      H  heads                   d  dimensions of a code
    P  side of a patch               F  feed-forward width      E  features per pixel
    T  patches of an image: (S/P)^2  K  width of one head       N  numbers the loss wants per pixel
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisheropt_lab.models.codebook import Codebook


@dataclass(frozen=True)
class VqVaeConfig:
    """Widths and depths of one model; `SIZES` holds the named ones."""

    side: int  # S
    patch: int  # P
    layers: int  # of the encoder, and again of the decoder
    width: int  # D
    heads: int  # H
    codes: int  # V
    code_width: int  # d
    pixel_width: int = 32  # E

    @property
    def patches_across(self) -> int:
        """S/P."""
        return self.side // self.patch

    @property
    def tokens(self) -> int:
        """T."""
        return self.patches_across**2

    @property
    def feed_forward(self) -> int:
        """F, four times the width."""
        return 4 * self.width


SIZES: dict[str, VqVaeConfig] = {  # parameters under cross-entropy; a test counts them
    "tiny": VqVaeConfig(side=32, patch=4, layers=4, width=96, heads=4, codes=256, code_width=8),  # 978,504
    "small": VqVaeConfig(side=64, patch=4, layers=6, width=256, heads=8, codes=1024, code_width=16),  # 9,672,464
    "base": VqVaeConfig(side=128, patch=8, layers=8, width=512, heads=8, codes=8192, code_width=32),  # 51,910,432
    "100m": VqVaeConfig(side=256, patch=8, layers=10, width=640, heads=10, codes=8192, code_width=32),  # 100,238,368
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        D, F = config.width, config.feed_forward
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(D)
        self.query_key_value = nn.Linear(D, 3 * D)
        self.attention_out = nn.Linear(D, D)
        self.feed_forward_norm = nn.LayerNorm(D)
        self.up = nn.Linear(D, F)
        self.down = nn.Linear(F, D)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.attend(self.attention_norm(x))  # (B, T, D)
        h = nn.functional.gelu(self.up(self.feed_forward_norm(x)))  # (B, T, F)
        return x + self.down(h)  # (B, T, D)

    def attend(self, h: Tensor) -> Tensor:
        """Every patch looks at every patch: (B, T, D) -> (B, T, D)"""
        qkv = self.query_key_value(h).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        y = nn.functional.scaled_dot_product_attention(q, k, v)  # (B, H, T, K)
        out: Tensor = self.attention_out(y.transpose(1, 2).flatten(2))  # (B, T, D)
        return out


class Transformer(nn.Module):
    """Blocks between a place for every patch and a norm."""

    places: Tensor  # (T, D)

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        self.register_buffer("places", waves(config.patches_across, config.width), persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.places  # (B, T, D)
        for block in self.blocks:
            x = block(x)  # (B, T, D)
        out: Tensor = self.norm(x)  # (B, T, D)
        return out


class Whiten(nn.Module):
    """Mean 0, variance about 1 and no correlation over the batch: (B, T, d) -> (B, T, d). Evaluation takes averages.

    Latents that all lie along one line, as they do when a model has learnt of brightness and nothing else yet, would
    have two places on the sphere, and so no more than two codes. A hundredth of the mean variance is added to each, so
    that no direction is drawn out by more than ten.
    """

    mean: Tensor  # (d,)
    covariance: Tensor  # (d, d)

    def __init__(self, code_width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(code_width))
        self.register_buffer("covariance", torch.eye(code_width))

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)"""
        mean, covariance = self.mean, self.covariance  # (d,), (d, d)
        if self.training:
            mean = z.mean((0, 1))  # (d,)
            centred = (z - mean).flatten(0, 1)  # (B T, d)
            covariance = centred.T @ centred / len(centred)  # (d, d)
            self.mean.lerp_(mean.detach(), 0.1)
            self.covariance.lerp_(covariance.detach(), 0.1)
        ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=z.dtype, device=z.device)  # (d, d)
        L, _ = torch.linalg.cholesky_ex(covariance + ridge)  # (d, d); NaN where a training has diverged
        return torch.linalg.solve_triangular(L, (z - mean).transpose(1, 2), upper=False).transpose(1, 2)  # (B, T, d)


def waves(across: int, width: int) -> Tensor:
    """Sines and cosines of row and column, a quarter of the channels each: (T, D). Nothing is learned of places."""
    t = torch.arange(across)  # (S/P,)
    frequency = 10_000.0 ** (-torch.arange(0, width, 4) / width)  # (D/4,)
    angle = t[:, None] * frequency  # (S/P, D/4)
    table = torch.cat((angle.sin(), angle.cos()), -1)  # (S/P, D/2)
    rows = table[:, None].expand(-1, across, -1)  # (S/P, S/P, D/2)
    columns = table[None].expand(across, -1, -1)  # (S/P, S/P, D/2)
    return torch.cat((rows, columns), -1).flatten(0, 1)  # (T, D)


class VqVae(nn.Module):
    """Images in; for every pixel the features of the last layer, `head`, out.

    The last layer is apart because a loss may want its output in pieces: 256 logits for each of the three bytes of a
    pixel are large. Everything before it is the same for every loss.
    """

    def __init__(self, config: VqVaeConfig, numbers_per_pixel: int, seed: int = 0) -> None:
        """`numbers_per_pixel`: N. `seed`: decides, with the step, what dead codes become."""
        super().__init__()
        D, P, E = config.width, config.patch, config.pixel_width
        self.config = config
        self.patches = nn.Linear(3 * P * P, D)
        self.encoder = Transformer(config)
        self.to_code = nn.Linear(D, config.code_width)
        self.whiten = Whiten(config.code_width)
        self.codebook = Codebook(config.codes, config.code_width, seed)
        self.from_code = nn.Linear(config.code_width, D)
        self.decoder = Transformer(config)
        self.pixels = nn.Linear(D, P * P * E)
        self.head = nn.Linear(E, numbers_per_pixel)  # the same for every pixel of a patch
        self.initialise()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, S, S) in [0, 1] -> features of pixels (B, S, S, E), codes (B, T) int64, quantisation loss ()

        In training mode a call counts as a step of the codebook: see `Codebook`.
        """
        latents = self.encode(images)  # (B, T, d)
        quantised, codes, loss = self.codebook(latents)  # (B, T, d), (B, T), ()
        return self.decode(quantised), codes, loss

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> unit vectors (B, T, d)"""
        patches = nn.functional.unfold(2 * images - 1, self.config.patch, stride=self.config.patch)  # (B, 3 P P, T)
        x = self.encoder(self.patches(patches.transpose(1, 2)))  # (B, T, D)
        return nn.functional.normalize(self.whiten(self.to_code(x)), dim=-1)  # (B, T, d)

    def decode(self, quantised: Tensor) -> Tensor:
        """(B, T, d) -> (B, S, S, E)"""
        n, P, E = self.config.patches_across, self.config.patch, self.config.pixel_width
        x = self.decoder(self.from_code(quantised))  # (B, T, D)
        y = nn.functional.gelu(self.pixels(x)).unflatten(-1, (P, P, E))  # (B, T, P, P, E)
        y = y.unflatten(1, (n, n)).transpose(2, 3)  # (B, S/P, P, S/P, P, E)
        return y.flatten(1, 2).flatten(2, 3)  # (B, S, S, E)

    @torch.no_grad()
    def initialise(self) -> None:
        """Normal weights of variance 1/fan-in, biases zero; what writes to a residual stream is scaled down by
        sqrt(2 layers), so that its variance does not grow with depth."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                writes = name.endswith(("attention_out", "down"))
                gain = (2 * self.config.layers) ** -0.5 if writes else 1.0
                nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)
