"""From a recogniser's probabilities to labels: the best path, and beam searches. One utterance at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fisheropt_lab.models.recognizer import BLANK, Transducer

Labels = tuple[int, ...]

_NEVER = -math.inf


def ctc_greedy(log_p: Tensor) -> list[int]:
    """The most probable label of every frame, repeats merged, blanks dropped: (T, V) -> labels."""
    best = log_p.argmax(-1).tolist()
    return [a for a, before in zip(best, [BLANK, *best], strict=False) if a not in (BLANK, before)]


def ctc_beam(log_p: Tensor, width: int = 8) -> list[int]:
    """Prefix beam search (Graves and Jaitly 2014; Hannun et al. 2014), without a language model: (T, V) -> labels.

    Of every prefix the summed probability of its alignments so far is kept, apart for those that end in a blank.
    """
    prefixes: dict[Labels, tuple[float, float]] = {(): (0.0, _NEVER)}  # ends in blank, ends in its last label
    for frame in log_p.tolist():
        following: dict[Labels, tuple[float, float]] = defaultdict(lambda: (_NEVER, _NEVER))

        def add(prefix: Labels, blank: float, label: float, into: dict[Labels, tuple[float, float]]) -> None:
            into[prefix] = (_logaddexp(into[prefix][0], blank), _logaddexp(into[prefix][1], label))

        for prefix, (blank, label) in prefixes.items():
            either = _logaddexp(blank, label)
            add(prefix, either + frame[BLANK], _NEVER, following)
            for v in range(len(frame)):
                if v == BLANK:
                    continue
                if prefix and v == prefix[-1]:
                    add(prefix, _NEVER, label + frame[v], following)  # the same one, longer
                    add((*prefix, v), _NEVER, blank + frame[v], following)  # once more, after a blank
                else:
                    add((*prefix, v), _NEVER, either + frame[v], following)
        prefixes = dict(_best(following, width, lambda p: _logaddexp(*p)))
    return list(max(prefixes, key=lambda prefix: _logaddexp(*prefixes[prefix])))


def transducer_greedy(model: Transducer, encoded: Tensor, per_frame: int = 10) -> list[int]:
    """The most probable step at every node, at most ``per_frame`` labels in a frame: (T, D) -> labels."""
    labels: list[int] = []
    predicted, state = _start(model, encoded)
    for frame in encoded:
        for _ in range(per_frame):
            best = int(model.joint(frame.view(1, 1, -1), predicted)[0, 0, 0].argmax())
            if best == BLANK:
                break
            labels.append(best)
            predicted, state = _write(model, best, state)
    return labels


def transducer_beam(model: Transducer, encoded: Tensor, width: int = 4, per_frame: int = 4) -> list[int]:
    """Beam search over labels frame by frame, alignments of the same labels added up (Graves 2012): (T, D) -> labels.

    In a frame every prefix may write up to ``per_frame`` labels; then the ``width`` most probable go on.
    """
    predicted, state = _start(model, encoded)
    memory: dict[Labels, tuple[Tensor, Any]] = {(): (predicted, state)}
    beam: dict[Labels, float] = {(): 0.0}
    for frame in encoded:
        done: dict[Labels, float] = defaultdict(lambda: _NEVER)
        writing = beam
        for written in range(per_frame + 1):
            longer: dict[Labels, float] = defaultdict(lambda: _NEVER)
            for prefix, score in writing.items():
                log_p = model.joint(frame.view(1, 1, -1), memory[prefix][0])[0, 0, 0].float().log_softmax(-1).tolist()
                done[prefix] = _logaddexp(done[prefix], score + log_p[BLANK])
                if written < per_frame:
                    for v in range(len(log_p)):
                        if v != BLANK:
                            longer[*prefix, v] = _logaddexp(longer[*prefix, v], score + log_p[v])
            writing = dict(_best(longer, width, float))
            for prefix in writing:
                if prefix not in memory:
                    memory[prefix] = _write(model, prefix[-1], memory[prefix[:-1]][1])
        beam = dict(_best(done, width, float))
        memory = {prefix: memory[prefix] for prefix in beam}
    return list(max(beam, key=beam.__getitem__))


def _start(model: Transducer, like: Tensor) -> tuple[Tensor, Any]:
    """What the joint network takes before any label, and the memory: (1, 1, D) and a state."""
    return _write(model, BLANK, None, like.device)


def _write(model: Transducer, label: int, state: Any, device: torch.device | None = None) -> tuple[Tensor, Any]:
    """The same after one more label."""
    device = state[0].device if state is not None else device
    predicted, state = model.memory(model.embedding(torch.tensor([[label]], device=device)), state)
    return predicted, state


def _best(scored: Mapping[Labels, Any], width: int, score: Any) -> list[tuple[Labels, Any]]:
    return sorted(scored.items(), key=lambda item: score(item[1]), reverse=True)[:width]


def _logaddexp(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))
