"""The speech task: a Conformer writes down what it hears (arXiv:2405.12807, Section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fisheropt_lab.models.conformer import SIZES
from fisheropt_lab.models.recognizer import BLANK, CtcRecognizer, Transducer
from fisheropt_lab.options import known, positive
from fisheropt_lab.record import Exhibit
from fisheropt_lab.tasks.protocol import Asked, Batch, Metric, Outline, Setup, Split, TaskKind, Unit
from fisheropt_lab.tasks.speech.alphabet import LABELS, decode
from fisheropt_lab.tasks.speech.decoding import ctc_beam, ctc_greedy, transducer_beam, transducer_greedy
from fisheropt_lab.tasks.speech.extra import module
from fisheropt_lab.tasks.speech.features import FRAMES_PER_SECOND, spec_augment
from fisheropt_lab.tasks.speech.librispeech import SPLITS, Speech, read_speech
from fisheropt_lab.tasks.speech.recordings import Recordings
from fisheropt_lab.tasks.speech.synthesis import cache_folder, synthetic_speech
from fisheropt_lab.tasks.speech.transducer_loss import node_log_probabilities, transducer_loss

LOSSES = ("ctc", "rnnt")
SEARCHES = ("greedy", "beam")


@dataclass(frozen=True)
class Scale:
    """What a model size is trained with unless the user says otherwise."""

    steps: int
    batch_size: int  # utterances
    memory_layers: int  # of the transducer's LSTM


SCALES: dict[str, Scale] = {
    "tiny": Scale(steps=500, batch_size=16, memory_layers=1),
    "small": Scale(steps=50_000, batch_size=256, memory_layers=1),
    "base": Scale(steps=100_000, batch_size=512, memory_layers=1),
    "large": Scale(steps=100_000, batch_size=2_048, memory_layers=1),
    "600m": Scale(steps=100_000, batch_size=2_048, memory_layers=2),
}
EVALUATED = {"validation": 96, "test": 256}  # utterances at most, evenly spread; validation is seen often
DECODED_AT_ONCE = 32
SHOWN = 8


@dataclass(frozen=True)
class SpeechSettings:
    """The part of a study's spec that only this task understands."""

    size: str
    batch_size: int
    loss: str
    search: str
    data: str | None  # a folder in LibriSpeech's layout, absolute; None for synthetic speech


class SpeechTask:
    """Implements `tasks.protocol.Task`."""

    def __init__(self, settings: SpeechSettings, speech: Speech | None = None) -> None:
        self.settings = settings
        self.config = SIZES[settings.size]
        self.speech = speech or _speech(settings.data)
        kept = None if settings.data else cache_folder() / f"features-{self.config.mels}-{self.speech.sha256()[:16]}"
        self.recordings = {
            split: Recordings(utterances, self.config.mels, kept and kept / f"{split}.npz")
            for split, utterances in self.speech.utterances.items()
        }

    def describe_data(self) -> dict[str, Any]:
        speech = self.speech
        return {
            "source": speech.source,
            "how_split": speech.how_split,
            "sha256": speech.sha256(),
            "utterances": {split: len(speech.utterances[split]) for split in SPLITS},
            "speakers": {split: len({u.speaker for u in speech.utterances[split]}) for split in SPLITS},
            "evaluated_utterances": {split: len(self._evaluated(cast(Split, split))) for split in EVALUATED},
        }

    def protocol(self, steps: int) -> list[str]:
        settings, data, config = self.settings, self.describe_data(), self.config
        with torch.device("meta"):
            parameters = sum(p.numel() for p in _model(settings).parameters())
        sizes = ", ".join(f"{split} {size:,}" for split, size in data["utterances"].items())
        seen = steps * settings.batch_size
        head = {
            "ctc": "a linear layer under connectionist temporal classification",
            "rnnt": f"a transducer with an LSTM of {SCALES[settings.size].memory_layers} layer(s)",
        }[settings.loss]
        return [
            f"Model “{settings.size}”: Conformer encoder of {config.layers} layers of width {config.width} with "
            f"{config.heads} heads and convolutions over {config.kernel} frames, and {head}; {parameters:,} "
            "parameters, no dropout.",
            f"Data: {data['source']}; utterances: {sizes}; split {data['how_split']}; SHA-256 of the transcripts "
            f"{data['sha256'][:16]}….",
            f"Features: {config.mels} log-mel bands every 10 ms, mean 0 and variance 1 per utterance; in training two "
            "bands and two spans of time are blanked out (SpecAugment). Labels: 28 characters and a blank.",
            f"A training step sees {settings.batch_size} random utterances; {steps} steps see {seen:,}, "
            f"{seen / data['utterances']['train']:.2g} times the training split.",
            f"Validation looks at {data['evaluated_utterances']['validation']} utterances, the test at "
            f"{data['evaluated_utterances']['test']}. Transcripts by {settings.search} search, no language model. "
            "At this scale the loss and the character error rate resolve differences; the word error rate hardly does.",
        ]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of our business
            torch.manual_seed(seed)
            return _model(self.settings)

    def batch(self, seed: int, step: int) -> Batch:
        """Random utterances of the training split, augmented; see `Recordings.batch`."""
        train = self.recordings["train"]
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        chosen = random.integers(0, len(train), size=self.settings.batch_size).tolist()
        return train.batch([(spec_augment(train.features(i), random), train.labels[i]) for i in chosen])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats per character: -log P of the transcripts, summed over the batch, divided by their characters."""
        return recognition_loss(self.settings.loss, model, batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, device: torch.device) -> float:
        """Nats per character over evenly spaced utterances of a split, without augmentation."""
        total, characters = 0.0, 0
        for _, batch in self._evaluation_batches(split, device):
            count = int(batch[3].sum())
            total += self.loss(model, batch).item() * count
            characters += count
        return total / characters

    @torch.no_grad()
    def metrics(self, model: nn.Module, split: Split, device: torch.device) -> dict[str, float]:
        """Error rates, also apart for those utterances whose speakers the training does not have."""
        jiwer = module("jiwer")
        known_speakers = {u.speaker for u in self.speech.utterances["train"]}
        said, heard = self._transcripts(model, split, device)
        new = [i for i, (_, speaker) in enumerate(said) if speaker not in known_speakers]
        texts = [text for text, _ in said]
        found = {"cer": jiwer.cer(texts, heard), "wer": jiwer.wer(texts, heard)}
        if new:
            found["cer_new_voices"] = jiwer.cer([texts[i] for i in new], [heard[i] for i in new])
        return cast(dict[str, float], found)

    @torch.no_grad()
    def exhibits(self, model: nn.Module, device: torch.device) -> Iterable[Exhibit]:
        """A few test sentences, and what the model wrote."""
        said, heard = self._transcripts(model, "test", device)
        shown = range(0, len(said), max(1, len(said) // SHOWN))
        lines = [f"said ({said[i][1]})  {said[i][0]}\nwritten     {heard[i]}" for i in shown]
        return [Exhibit("Test sentences and what was written (speaker in brackets)", "text", "\n\n".join(lines))]

    def _transcripts(
        self, model: nn.Module, split: Split, device: torch.device
    ) -> tuple[list[tuple[str, str]], list[str]]:
        """(text, speaker) of the evaluated utterances, and what the model wrote."""
        said, heard = [], []
        for chosen, batch in self._evaluation_batches(split, device):
            said += [(self.speech.utterances[split][i].text, self.speech.utterances[split][i].speaker) for i in chosen]
            heard += transcribe(model, batch, self.settings.search)
        return said, heard

    def _evaluated(self, split: Split) -> list[int]:
        available = len(self.speech.utterances[split])
        wanted = min(available, EVALUATED[split])
        return [i * available // wanted for i in range(wanted)]

    def _evaluation_batches(self, split: Split, device: torch.device) -> Iterator[tuple[list[int], Batch]]:
        recordings, chosen = self.recordings[split], self._evaluated(split)
        for first in range(0, len(chosen), DECODED_AT_ONCE):
            some = chosen[first : first + DECODED_AT_ONCE]
            batch = recordings.batch([(recordings.features(i), recordings.labels[i]) for i in some])
            yield some, tuple(part.to(device) for part in batch)


def recognition_loss(kind: str, model: nn.Module, batch: Batch) -> Tensor:
    """Nats per character of a batch as `Recordings.batch` makes it: ()"""
    features, lengths, labels, label_lengths = batch  # (B, S, M), (B,), (B, U), (B,)
    characters = label_lengths.sum()
    if kind == "rnnt":
        encoded, frames, predicted = model(features, lengths, labels)  # (B, T, D), (B,), (B, U+1, D)
        transducer = cast(Transducer, model)
        blank, label = node_log_probabilities(transducer.joint, encoded, predicted, labels)
        return transducer_loss(blank, label, frames, label_lengths).sum() / characters
    log_p, frames = model(features, lengths)  # (B, T, V), (B,)
    nll = nn.functional.ctc_loss(log_p.transpose(0, 1), labels, frames, label_lengths, BLANK, reduction="sum")
    return nll / characters


def transcribe(model: nn.Module, batch: Batch, search: str) -> list[str]:
    """What the model writes for each utterance of a batch."""
    features, lengths, *_ = batch
    if isinstance(model, Transducer):
        encoded, frames = model.encoder(features, lengths)
        find = transducer_beam if search == "beam" else transducer_greedy
        rows = [find(model, x[:n]) for x, n in zip(encoded, frames.tolist(), strict=True)]
    else:
        log_p, frames = model(features, lengths)
        look = ctc_beam if search == "beam" else ctc_greedy
        rows = [look(x[:n]) for x, n in zip(log_p, frames.tolist(), strict=True)]
    return [decode(row) for row in rows]


def _model(settings: SpeechSettings) -> nn.Module:
    config = SIZES[settings.size]
    if settings.loss == "rnnt":
        return Transducer(config, LABELS, SCALES[settings.size].memory_layers)
    return CtcRecognizer(config, LABELS)


def _speech(data: str | None) -> Speech:
    if data is None:
        return synthetic_speech()
    return read_speech(Path(data), source=Path(data).name, how_split="as its folders say")


def _setup(asked: Asked) -> Setup:
    size = known("size", asked.size or "tiny", SCALES)
    scale = SCALES[size]
    settings = SpeechSettings(
        size=size,
        batch_size=positive("--batch-size", asked.batch_size, scale.batch_size),
        loss=known("loss", asked.set.get("loss", LOSSES[0]), LOSSES),
        search=known("search", asked.set.get("search", SEARCHES[0]), SEARCHES),
        data=None if asked.data is None else str(asked.data.resolve()),
    )
    return Setup(asdict(settings), scale.steps)


def _load(settings: Mapping[str, Any]) -> SpeechTask:
    return SpeechTask(SpeechSettings(**settings))


def _outline(settings: Mapping[str, Any]) -> Outline:
    chosen = SpeechSettings(**settings)
    seconds, characters = 12, 180  # LibriSpeech's average utterance
    with torch.device("meta"):
        model = _model(chosen)
        features = torch.zeros(chosen.batch_size, seconds * FRAMES_PER_SECOND, SIZES[chosen.size].mels)
        labels = torch.ones(chosen.batch_size, characters, dtype=torch.int64)
        lengths = torch.full((chosen.batch_size,), features.shape[1])

    def loss(net: nn.Module) -> Tensor:
        if isinstance(net, Transducer):
            encoded, _, predicted = net(features, lengths, labels)
            blank, label = node_log_probabilities(net.joint, encoded, predicted, labels)
            return blank.sum() + label.sum()
        total: Tensor = net(features, lengths)[0].sum()
        return total

    return Outline(model, loss, f"{chosen.batch_size} utterances of {seconds} s")


SPEECH = TaskKind(
    about="a small Conformer on (synthetic) speech",
    units=(Unit("nats/character", 1.0), Unit("bits/character", 1 / math.log(2))),
    optimizers="adamw,fadam",
    options=frozenset({"size", "batch_size", "data", "loss", "search"}),
    setup=_setup,
    load=_load,
    outline=_outline,
    sizes=tuple(SCALES),
    quick={"batch_size": 6},
    metrics=(
        Metric("cer", "%", 100.0, 1),
        Metric("wer", "%", 100.0, 1),
        Metric("cer_new_voices", "%", 100.0, 1),
    ),
    losses={"CTC": {"loss": "ctc"}, "RNN-T": {"loss": "rnnt"}},
)
