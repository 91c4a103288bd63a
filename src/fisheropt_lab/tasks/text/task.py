"""The text task: a PaLM-style decoder predicts the next byte, or the next token of a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisheropt_lab.errors import LabError
from fisheropt_lab.models.palm import SIZES, Palm, PalmConfig
from fisheropt_lab.options import known, positive
from fisheropt_lab.record import Exhibit
from fisheropt_lab.tasks.protocol import Asked, Batch, Outline, Setup, Split, TaskKind, Unit
from fisheropt_lab.tasks.text.corpus import Corpus
from fisheropt_lab.tasks.text.python_docs import python_docs
from fisheropt_lab.tasks.text.tokens import TokenText
from fisheropt_lab.tasks.text.user_text import user_text


@dataclass(frozen=True)
class Scale:
    """What a model size is trained with unless the user says otherwise."""

    steps: int
    batch_size: int  # sequences
    seq_len: int  # tokens


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
    tokenizer: str | None = None  # a file of the tokenizers package, absolute; None: the tokens are bytes


class TextTask:
    """Implements `tasks.protocol.Task`."""

    def __init__(self, settings: TextSettings, corpus: Corpus | None = None) -> None:
        self.settings = settings
        self.corpus = corpus or _corpus(settings)
        self.config = replace(SIZES[settings.size], vocabulary=self.corpus.vocabulary)
        self.corpus.require_windows_of(settings.seq_len + 1)  # one more than the inputs: the last target

    def describe_data(self) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "source": corpus.source,
            "how_split": corpus.how_split,
            "sha256": corpus.sha256,
            corpus.token: corpus.sizes(),
            f"evaluated_{corpus.token}": {
                "validation": len(self._window_starts("validation")) * self.settings.seq_len,
                "test": len(self._window_starts("test")) * self.settings.seq_len,
            },
        }

    def protocol(self, steps: int) -> list[str]:
        settings, data = self.settings, self.describe_data()
        config, token = self.config, self.corpus.token
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Palm(config).parameters())
        sizes = ", ".join(f"{split} {size:,}" for split, size in data[token].items())
        seen, evaluated = steps * settings.batch_size * settings.seq_len, data[f"evaluated_{token}"]
        per_token = (
            ""
            if settings.tokenizer is None
            else f" A token of {Path(settings.tokenizer).name} ({config.vocabulary:,} of them) stands for "
            f"{self.corpus.bytes_per_token:.2f} bytes on average; losses are per byte."
        )
        return [
            f"Model “{settings.size}”: PaLM-style decoder over {token}, {parameters:,} parameters, {config.layers} "
            f"layers of width {config.width}, {config.heads} query heads on one key/value head, parallel attention and "
            "SwiGLU, RoPE, RMSNorm before each layer, tied embeddings, no biases.",
            f"Data: {data['source']}; {token}: {sizes}; split {data['how_split']}; SHA-256 {data['sha256'][:16]}…."
            f"{per_token}",
            f"A training step sees {settings.batch_size} sequences of {settings.seq_len} {token} from random places of "
            f"the training split; {steps} steps see {seen:,} {token}, "
            f"{seen / data[token]['train']:.2g} times its length.",
            f"Validation looks at {evaluated['validation']:,} {token}, the test at {evaluated['test']:,}, in separate "
            "sequences that each start without context.",
        ]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of our business
            torch.manual_seed(seed)
            return Palm(self.config)

    def batch(self, seed: int, step: int) -> Batch:
        """inputs and targets, each (batch_size, seq_len) int64: windows at random places of the training split."""
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        text, length = self.corpus.train, self.settings.seq_len + 1
        starts = random.integers(0, len(text) - length, size=self.settings.batch_size, endpoint=True)
        return _stack(text, starts.tolist(), length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy per byte of text, in nats."""
        return next_token_loss(model, batch) / self.corpus.bytes_per_token  # ()

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

    def exhibits(self, model: nn.Module, device: torch.device) -> Iterable[Exhibit]:
        return ()

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

    def _text(self, split: Split) -> TokenText:
        return self.corpus.validation if split == "validation" else self.corpus.test


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy per token, in nats: inputs (B, T), targets (B, T) -> ()"""
    inputs, targets = batch  # (B, T), (B, T)
    logits = model(inputs)  # (B, T, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())  # ()


def _corpus(settings: TextSettings) -> Corpus:
    if settings.data is None:
        return python_docs()
    return user_text(Path(settings.data), None if settings.tokenizer is None else Path(settings.tokenizer))


def _stack(text: TokenText, starts: list[int], length: int) -> Batch:
    """Windows of `length` tokens -> inputs and next-token targets, each (len(starts), length - 1) int64."""
    windows = np.stack([text.window(start, length) for start in starts])  # (B, T + 1)
    tokens = torch.from_numpy(windows.astype(np.int64))  # (B, T + 1)
    return tokens[:, :-1], tokens[:, 1:]


def _setup(asked: Asked) -> Setup:
    size = known("size", asked.size or "tiny", SCALES)
    scale = SCALES[size]
    if asked.tokenizer is not None and asked.data is None:
        raise LabError("--tokenizer needs --data: Python's documentation is read byte by byte")
    settings = TextSettings(
        size=size,
        batch_size=positive("--batch-size", asked.batch_size, scale.batch_size),
        seq_len=positive("--seq-len", asked.seq_len, scale.seq_len),
        data=None if asked.data is None else str(asked.data.resolve()),
        tokenizer=None if asked.tokenizer is None else str(asked.tokenizer.resolve()),
    )
    return Setup(asdict(settings), scale.steps)


def _load(settings: Mapping[str, Any]) -> TextTask:
    return TextTask(TextSettings(**settings))


def _outline(settings: Mapping[str, Any]) -> Outline:
    chosen = TextSettings(**settings)
    config: PalmConfig = SIZES[chosen.size]
    with torch.device("meta"):
        model = Palm(config)
        tokens = torch.zeros(chosen.batch_size, chosen.seq_len, dtype=torch.int64)  # (B, T)
    batch = f"{chosen.batch_size} sequences of {chosen.seq_len} bytes"
    return Outline(model, lambda net: next_token_loss(net, (tokens, tokens)), batch)


TEXT = TaskKind(
    about="a small language model on English text",
    units=(Unit("nats/byte", 1.0), Unit("bits/byte", 1 / math.log(2))),
    optimizers="adamw,fadam",
    options=frozenset({"size", "batch_size", "seq_len", "data", "tokenizer"}),
    setup=_setup,
    load=_load,
    outline=_outline,
    sizes=tuple(SCALES),
    quick={"seq_len": 64},
)
