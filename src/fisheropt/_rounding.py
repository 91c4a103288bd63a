"""Stochastic rounding: numbers that are too long go up or down with the probability that makes the result unbiased.

The noise is a hash of the element's index, the step, a seed and the name of what is rounded, not a stream of random
numbers: it needs no generator state in a checkpoint and no host synchronisation, and it is the same for any number of
threads, on any device, in any backend; of a shard it is that of its elements in the whole tensor.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

__all__ = ["noise", "round_to_bfloat16", "salt"]

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers (held in int64) in which every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


def salt(seed: int, name: str) -> int:
    """What sets the noise of a seed and a purpose apart from others: added to the step it makes a key. 32 bits."""
    return (0x9E3779B9 * (seed + 1) + zlib.crc32(name.encode())) & _MASK


def noise(count: int, step: Tensor, seed: int, name: str, index: Tensor | None = None) -> Tensor:
    """``count`` numbers, uniform over the 32-bit integers: int64 of shape (count,), on the device of ``step``.

    ``index``: int64 of shape (count,), which elements of the tensor they are for; None: the first ``count``.
    ``step``: 0-d int64 tensor; ``name``: what the noise is for, so that the slots of a tensor have noise of their own.
    """
    key = _mix((step + salt(seed, name)) & _MASK)
    if index is None:
        index = torch.arange(count, dtype=torch.int64, device=step.device)
    return _mix((index & _MASK) ^ key)


def round_to_bfloat16(x: Tensor, step: Tensor, seed: int, name: str, index: Tensor | None = None) -> Tensor:
    """``x`` (float32, shape (n,)) in bfloat16, rounded stochastically; beyond its largest number it saturates.

    bfloat16 is the upper half of float32: adding a random lower half and cutting it off rounds up with the
    probability of the fraction that is cut.
    """
    largest = torch.finfo(torch.bfloat16).max
    bits = x.clamp(-largest, largest).view(torch.int32)
    bits = bits + (noise(x.numel(), step, seed, name, index) >> 16).to(torch.int32)
    return (bits & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
