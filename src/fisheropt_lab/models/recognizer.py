"""Speech recognisers: a Conformer encoder with one of two heads, connectionist temporal classification or a transducer.

Label 0 is the blank of both. Shape letters as in `conformer`; U labels of the longest transcript, V labels in all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fisheropt_lab.models.conformer import Conformer, ConformerConfig

BLANK = 0


class CtcRecognizer(nn.Module):
    """A label, or a blank, for every frame, independently given the audio."""

    def __init__(self, config: ConformerConfig, labels: int) -> None:
        super().__init__()
        self.encoder = Conformer(config)
        self.output = nn.Linear(config.width, labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, S, M) and their frames (B,) -> log-probabilities (B, T, V), float32, and frames (B,)"""
        x, frames = self.encoder(features, lengths)  # (B, T, D), (B,)
        return self.output(x).float().log_softmax(-1), frames  # (B, T, V), (B,)


class Joint(nn.Module):
    """Logits from what was heard and what was written."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.heard = nn.Linear(width, width)
        self.written = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, labels)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """(B, T, D) and (B, U+1, D) -> (B, T, U+1, V)"""
        heard = self.heard(encoded)[:, :, None]  # (B, T, 1, D)
        written = self.written(predicted)[:, None]  # (B, 1, U+1, D)
        logits: Tensor = self.output(torch.tanh(heard + written))  # (B, T, U+1, V)
        return logits


class Transducer(nn.Module):
    """A label or a blank for every frame and every number of labels written before, given audio and labels."""

    def __init__(self, config: ConformerConfig, labels: int, layers: int) -> None:
        super().__init__()
        D = config.width
        self.encoder = Conformer(config)
        self.embedding = nn.Embedding(labels, D)
        self.memory = nn.LSTM(D, D, layers, batch_first=True)
        self.joint = Joint(D, labels)

    def forward(self, features: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, S, M), their frames (B,) and labels (B, U) -> (B, T, D), frames (B,) and (B, U+1, D): what the
        joint network takes."""
        encoded, frames = self.encoder(features, lengths)  # (B, T, D), (B,)
        start = targets.new_full((len(targets), 1), BLANK)  # (B, 1)
        predicted, _ = self.memory(self.embedding(torch.cat((start, targets), 1)))  # (B, U+1, D)
        return encoded, frames, predicted
