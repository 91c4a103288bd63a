"""The text task: a PaLM-style decoder predicts the next byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisheropt_lab.models.palm import SIZES, Palm
from fisheropt_lab.options import known, positive
from fisheropt_lab.tasks.protocol import Asked, Batch, Setup, Split, TaskKind, Unit
from fisheropt_lab.tasks.text.bytetext import ByteText
from fisheropt_lab.tasks.text.corpus import Corpus
from fisheropt_lab.tasks.text.python_docs import python_docs
from fisheropt_lab.tasks.text.user_text import user_text


@dataclass(frozen=True)
class Scale:
    """What a model size is trained with unless the user says otherwise."""

    steps: int
    batch_size: int  # sequences
    seq_len: int  # bytes


SCALES: dict[str, Scale] = {
    "tiny": Scale(steps=500, batch_size=8, seq_len=128),
    "small": Scale(steps=2_000, batch_size=16, seq_len=256),
    "base": Scale(steps=10_000, batch_size=32, seq_len=512),
    "1b": Scale(steps=20_000, batch_size=64, seq_len=1024),
}

VALIDATION_WINDOWS = 128  # seen some fifteen times per trial, so kept small
TEST_WINDOWS = 1024  # seen once


@dataclass(frozen=True)
class TextSettings:
    """The part of a comparison's spec that only this task understands."""

    size: str
    batch_size: int
    seq_len: int
    data: str | None  # a file or folder, absolute; None for Python's own documentation


class TextTask:
    """Implements `tasks.protocol.Task`."""

    def __init__(self, settings: TextSettings, corpus: Corpus | None = None) -> None:
        self.settings = settings
        self.corpus = corpus or (python_docs() if settings.data is None else user_text(Path(settings.data)))
        self.corpus.require_windows_of(settings.seq_len + 1)  # one more than the inputs: the last target

    def describe_data(self) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "source": corpus.source,
            "how_split": corpus.how_split,
            "sha256": corpus.sha256,
            "bytes": corpus.sizes(),
            "evaluated_bytes": {
                "validation": len(self._window_starts("validation")) * self.settings.seq_len,
                "test": len(self._window_starts("test")) * self.settings.seq_len,
            },
        }

    def protocol(self, steps: int) -> list[str]:
        settings, data = self.settings, self.describe_data()
        config = SIZES[settings.size]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Palm(config).parameters())
        sizes = ", ".join(f"{split} {size:,}" for split, size in data["bytes"].items())
        seen = steps * settings.batch_size * settings.seq_len
        return [
            f"Model “{settings.size}”: byte-level PaLM-style decoder, {parameters:,} parameters, {config.layers} "
            f"layers of width {config.width}, {config.heads} query heads on one key/value head, parallel attention and "
            "SwiGLU, RoPE, RMSNorm before each layer, tied embeddings, no biases.",
            f"Data: {data['source']}; bytes: {sizes}; split {data['how_split']}; SHA-256 {data['sha256'][:16]}….",
            f"A training step sees {settings.batch_size} sequences of {settings.seq_len} bytes from random places of "
            f"the training split; {steps} steps see {seen:,} bytes, "
            f"{seen / data['bytes']['train']:.2g} times its length.",
            f"Validation looks at {data['evaluated_bytes']['validation']:,} bytes, the test at "
            f"{data['evaluated_bytes']['test']:,}, in separate sequences that each start without context.",
        ]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of our business
            torch.manual_seed(seed)
            return Palm(SIZES[self.settings.size])

    def batch(self, seed: int, step: int) -> Batch:
        """inputs and targets, each (batch_size, seq_len) int64: windows at random places of the training split."""
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        text, length = self.corpus.train, self.settings.seq_len + 1
        starts = random.integers(0, len(text) - length, size=self.settings.batch_size, endpoint=True)
        return _stack(text, starts.tolist(), length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy per byte, in nats."""
        inputs, targets = batch  # (B, T), (B, T)
        logits = model(inputs)  # (B, T, V)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())  # ()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """Nats per byte over evenly spaced windows, each predicted from its own beginning without earlier context."""
        total, sequences = 0.0, 0
        for batch in self._evaluation_batches(split):
            inputs, targets = (part.to(device) for part in batch)
            total += self.loss(model, (inputs, targets)).item() * len(inputs)
            sequences += len(inputs)
        return total / sequences

    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        return {}  # the loss says it all

    def windows(self, split: Split) -> Batch:
        """Everything `evaluate` looks at: inputs and targets, each (windows, seq_len) int64."""
        return _stack(self._text(split), self._window_starts(split), self.settings.seq_len + 1)

    def _evaluation_batches(self, split: Split) -> Iterator[Batch]:
        text, starts = self._text(split), self._window_starts(split)
        for first in range(0, len(starts), self.settings.batch_size):
            yield _stack(text, starts[first : first + self.settings.batch_size], self.settings.seq_len + 1)

    def _window_starts(self, split: Split) -> list[int]:
        """Where the windows of an evaluation begin: non-overlapping, spread over the whole split."""
        length = self.settings.seq_len
        available = (len(self._text(split)) - 1) // length
        wanted = min(available, VALIDATION_WINDOWS if split == "validation" else TEST_WINDOWS)
        return [length * (i * available // wanted) for i in range(wanted)]

    def _text(self, split: Split) -> ByteText:
        return self.corpus.validation if split == "validation" else self.corpus.test


def _stack(text: ByteText, starts: list[int], length: int) -> Batch:
    """Windows of `length` bytes -> inputs and next-byte targets, each (len(starts), length - 1) int64."""
    windows = np.stack([text.window(start, length) for start in starts])  # (B, T + 1) uint8
    tokens = torch.from_numpy(windows).long()  # (B, T + 1)
    return tokens[:, :-1], tokens[:, 1:]


def _setup(asked: Asked) -> Setup:
    size = known("size", asked.size or "tiny", SCALES)
    scale = SCALES[size]
    settings = TextSettings(
        size=size,
        batch_size=positive("--batch-size", asked.batch_size, scale.batch_size),
        seq_len=positive("--seq-len", asked.seq_len, scale.seq_len),
        data=None if asked.data is None else str(asked.data.resolve()),
    )
    return Setup(asdict(settings), scale.steps, lambda: TextTask(settings))


TEXT = TaskKind(
    about="a small language model on English text",
    units=(Unit("nats/byte", 1.0), Unit("bits/byte", 1 / math.log(2))),
    optimizers="adamw,fadam",
    options=frozenset({"size", "batch_size", "seq_len", "data"}),
    setup=_setup,
)
