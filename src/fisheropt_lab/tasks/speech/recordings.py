"""The utterances of one split as features and labels, ready to be batched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt_lab.tasks.protocol import Batch
from fisheropt_lab.tasks.speech.alphabet import encode
from fisheropt_lab.tasks.speech.features import RATE, log_mel, mel_filters
from fisheropt_lab.tasks.speech.librispeech import Utterance, load_audio

IN_MEMORY = 20_000  # utterances; the features of larger splits are computed anew whenever they are asked for


class Recordings:
    """Features (float16 where they are kept, float32 where they are handed out) and labels of utterances.

    Args:
        utterances: of one split.
        mels: bands of the features.
        kept: a file that holds all features, made if it does not exist; None computes them when they are asked for.
    """

    def __init__(self, utterances: Sequence[Utterance], mels: int, kept: Path | None = None) -> None:
        self.utterances = utterances
        self.labels = [encode(u.text) for u in utterances]
        self._filters = mel_filters(mels)
        self._kept: tuple[NDArray[np.float16], NDArray[np.int64]] | None = None
        if kept is not None and len(utterances) <= IN_MEMORY:
            self._kept = self._load(kept)

    def __len__(self) -> int:
        return len(self.utterances)

    def features(self, i: int) -> Tensor:
        """(frames, mels)"""
        if self._kept is None:
            return self._computed(i)
        frames, ends = self._kept
        start = int(ends[i - 1]) if i else 0
        return torch.from_numpy(frames[start : int(ends[i])].astype(np.float32))

    def batch(self, items: Sequence[tuple[Tensor, list[int]]]) -> Batch:
        """Features (B, S, M) and frames (B,), labels (B, U) and their numbers (B,), filled up with zeros and ones."""
        features, labels = zip(*items, strict=True)
        U = max(len(row) for row in labels)
        return (
            torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True),
            torch.tensor([len(x) for x in features]),
            torch.tensor([row + [1] * (U - len(row)) for row in labels], dtype=torch.int64),
            torch.tensor([len(row) for row in labels]),
        )

    def _computed(self, i: int) -> Tensor:
        return log_mel(torch.from_numpy(load_audio(self.utterances[i].audio, RATE)), self._filters)

    def _load(self, path: Path) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            features = [self._computed(i).half().numpy() for i in range(len(self))]
            ends = np.cumsum([len(x) for x in features], dtype=np.int64)
            handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".npz")
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, frames=np.concatenate(features), ends=ends)
            os.replace(unfinished, path)
        return _read(path)


@lru_cache(maxsize=8)
def _read(path: Path) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    with np.load(path) as kept:
        return kept["frames"], kept["ends"]
