"""The handwritten digits that come with scikit-learn, in three parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SOURCE = "the 1,797 handwritten digits of scikit-learn (UCI, Optical Recognition of Handwritten Digits, test part)"
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # of each digit
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """One part: pixels in [0, 1], (N, 1, 8, 8) float32, and digits, (N,) int64."""

    pixels: Tensor
    digits: Tensor
    indices: NDArray[np.int64]  # where they are in scikit-learn's arrays, (N,)

    def __len__(self) -> int:
        return len(self.digits)


def load_images() -> dict[str, Images]:
    """train, validation and test."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images / 16).float().unsqueeze(1)  # (1797, 1, 8, 8), from integers 0 to 16
    digits = torch.from_numpy(bunch.target).long()  # (1797,)
    return {
        name: Images(pixels[torch.from_numpy(indices)], digits[torch.from_numpy(indices)], indices)
        for name, indices in split(bunch.target).items()
    }


def split(digits: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Indices of each part, ascending: every digit is shuffled on its own and divided by the shares."""
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    for digit in np.unique(digits):
        random = np.random.Generator(np.random.Philox(key=[SPLIT_SEED, int(digit)]))
        mine = random.permutation(np.flatnonzero(digits == digit))
        ends = np.round(np.cumsum(list(SHARES.values())) * len(mine)).astype(int)
        for part, indices in zip(parts.values(), np.split(mine, ends[:-1]), strict=True):
            part.append(indices)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def digest(parts: dict[str, Images]) -> str:
    """SHA-256 of all pixels and digits in the order of the parts: changes with the data and with the split."""
    sha = hashlib.sha256()
    for part in parts.values():
        sha.update(part.pixels.numpy().tobytes())
        sha.update(part.digits.numpy().tobytes())
    return sha.hexdigest()
