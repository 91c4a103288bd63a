"""A small convolutional network for images of 8 x 8 pixels.

Shape letters, used in the comment on every line: B images in the batch.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two convolutions with padding, a halving, and two fully connected layers: 9,802 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1),  # (B, 8, 8, 8)
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=3, padding=1),  # (B, 16, 8, 8)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 16, 4, 4)
            nn.Flatten(),  # (B, 256)
            nn.Linear(256, 32),  # (B, 32)
            nn.ReLU(),
            nn.Linear(32, classes),  # (B, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8), pixels in [0, 1] -> logits (B, classes)"""
        logits: Tensor = self.layers(images)  # (B, classes)
        return logits
