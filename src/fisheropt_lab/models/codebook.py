"""The codes of a VQ-VAE: nearest neighbours on the unit sphere, a straight-through gradient, and no dead codes.

Shape letters: B images, T patches of an image, V codes, d dimensions of a code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMMITMENT = 0.25  # weight of the commitment loss beside the codebook loss, as in ViT-VQGAN and in VQ-VAE
PATIENCE = 2  # steps a code may go unused: early on latents move faster than codes can follow


class Codebook(nn.Module):
    """V unit vectors, of which each latent takes the nearest.

    The codes are a parameter, moved by the codebook loss as in ViT-VQGAN, and not averages of latents: so the optimizer
    under comparison trains all of the model, and the codes are what it makes of them.

    A code that no latent took for `PATIENCE` steps is dead: no gradient reaches it. Before a step each dead code
    becomes one of the batch's latents. Which one depends on the seed, the step and the code alone, all in the state
    dict, so that a resumed training goes on as if it had never stopped. All codes count as dead at first: the first
    batch places them. An optimizer's averages for a replaced code stay; its gradients after that outweigh them in time.
    """

    unused: Tensor  # (V,) int64: steps since a latent took the code
    step: Tensor  # () int64: training steps so far
    seed: Tensor  # () int64

    def __init__(self, codes: int, code_width: int, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.functional.normalize(torch.randn(codes, code_width), dim=-1))  # (V, d)
        self.register_buffer("unused", torch.full((codes,), PATIENCE))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (B, T, d) -> codes in their places (B, T, d), which codes (B, T) int64, quantisation loss ()

        The first output is the codes' vectors; its gradient goes to the latents as it is (straight-through). The loss
        is mean((sg(z) - e)^2) + COMMITMENT mean((z - sg(e))^2), where sg stops the gradient.
        """
        if self.training:
            self.replace_dead(latents.detach())
        codes = self.nearest(latents)  # (B, T)
        if self.training:
            self.count(codes)
        e = nn.functional.normalize(self.weight, dim=-1)[codes]  # (B, T, d)
        loss = nn.functional.mse_loss(e, latents.detach())  # ()
        loss = loss + COMMITMENT * nn.functional.mse_loss(latents, e.detach())  # ()
        return latents + (e - latents).detach(), codes, loss

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The code with the largest cosine, which on the sphere is the nearest one: (B, T, d) -> (B, T) int64"""
        return (latents @ nn.functional.normalize(self.weight, dim=-1).T).argmax(-1)  # (B, T, V) inside, (B, T) out

    @torch.no_grad()
    def replace_dead(self, latents: Tensor) -> None:
        """Move the codes that have been unused for too long onto latents of this batch, (B, T, d)."""
        z = latents.flatten(0, 1)  # (B T, d)
        chosen = self.draw() % len(z)  # (V,)
        dead = self.unused >= PATIENCE  # (V,)
        self.weight.copy_(torch.where(dead[:, None], z[chosen].to(self.weight), self.weight))  # (V, d)
        self.unused.masked_fill_(dead, 0)

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        """Take note of a step that used these codes, (B, T)."""
        used = torch.zeros_like(self.unused).index_fill_(0, codes.flatten(), 1).bool()  # (V,)
        self.unused.copy_(torch.where(used, 0, self.unused + 1))  # (V,)
        self.step += 1

    def draw(self) -> Tensor:
        """A pseudo-random number >= 0 for every code, a function of seed, step and code: (V,) int64.

        The finaliser of SplitMix64 (Steele et al. 2014) in wrapping int64 arithmetic: the same on every device, and
        without waiting for one, which reading the step for a `torch.Generator` would be.
        """
        code = torch.arange(len(self.unused), device=self.unused.device)  # (V,)
        x = (code + 1) * -0x61C8864680B583EB + (self.step + 1) * -0x4B47D0C5A1FBF2B3 + self.seed * 0x2545F4914F6CDD1D
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            x = (x ^ _shifted(x, shift)) * factor  # (V,)
        return (x ^ _shifted(x, 31)) & 0x7FFF_FFFF_FFFF_FFFF  # (V,)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A right shift that draws in zeros, which int64's does not: (V,) -> (V,)"""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def perplexity(codes: Tensor, V: int) -> float:
    """exp(entropy) of how often each of V codes occurs in a tensor of them: V if all alike, 1 if always one."""
    share = torch.bincount(codes.flatten(), minlength=V).double() / codes.numel()  # (V,)
    return torch.special.entr(share).sum().exp().item()
