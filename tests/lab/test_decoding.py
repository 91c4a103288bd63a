"""The searches for a transcript, against the probabilities of all transcripts."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fisheropt_lab.models.conformer import ConformerConfig
from fisheropt_lab.models.recognizer import BLANK, Transducer
from fisheropt_lab.tasks.speech.decoding import ctc_beam, ctc_greedy, transducer_beam, transducer_greedy
from fisheropt_lab.tasks.speech.transducer_loss import node_log_probabilities, transducer_loss

V, T = 3, 5  # a blank and two labels


def probable(seed: int) -> torch.Tensor:
    return torch.randn(T, V, generator=torch.Generator().manual_seed(seed)).mul(1.5).log_softmax(-1)


def best_of_all(log_p: torch.Tensor) -> list[int]:
    """The transcript with the largest sum over its alignments, by writing all of them out."""
    total: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(V), repeat=T):
        labels = tuple(k for k, _ in itertools.groupby(path) if k != BLANK)
        p = sum(log_p[t, v].item() for t, v in enumerate(path))
        total[labels] = total.get(labels, 0.0) + torch.tensor(p, dtype=torch.float64).exp().item()
    return list(max(total, key=total.__getitem__))


@pytest.mark.parametrize("seed", range(12))
def test_a_wide_beam_finds_the_most_probable_transcript(seed):
    log_p = probable(seed)
    assert ctc_beam(log_p, width=1000) == best_of_all(log_p)


def test_the_best_path_may_be_another_transcript():
    # Two frames: every path of "nothing" has 0.36, the three of "a" have 0.64 together.
    log_p = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert ctc_greedy(log_p) == []
    assert ctc_beam(log_p) == [1]


def test_greedy_merges_repeats_and_keeps_those_with_a_blank_between():
    frames = torch.tensor([1, 1, BLANK, 1, 2, 2, BLANK])
    assert ctc_greedy(torch.nn.functional.one_hot(frames, V).float()) == [1, 1, 2]


@pytest.fixture(scope="module")
@torch.no_grad()
def transducer() -> Transducer:
    torch.manual_seed(0)
    model = Transducer(ConformerConfig(1, 8, 2, 8, 3, 4), labels=V, layers=1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.9)
    model.joint.output.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))  # few labels are written
    return model


@torch.no_grad()
def probability(model: Transducer, encoded: torch.Tensor, labels: tuple[int, ...]) -> float:
    targets = torch.tensor([labels], dtype=torch.int64).view(1, -1)
    start = torch.full((1, 1), BLANK)
    predicted, _ = model.memory(model.embedding(torch.cat((start, targets), 1)))
    blank, label = node_log_probabilities(model.joint, encoded[None], predicted, targets)
    return -transducer_loss(blank, label, torch.tensor([len(encoded)]), torch.tensor([len(labels)])).item()


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_wide_transducer_beam_finds_the_most_probable_transcript(transducer, seed):
    encoded = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    everything = [labels for n in range(6) for labels in itertools.product(range(1, V), repeat=n)]
    best = max(everything, key=lambda labels: probability(transducer, encoded, labels))
    assert transducer_beam(transducer, encoded, width=200, per_frame=5) == list(best)


def test_greedy_writes_at_most_so_many_labels_in_a_frame():
    always_one = SimpleNamespace(
        joint=lambda e, p: torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 1, 3),
        embedding=lambda labels: labels,
        memory=lambda x, state: (x, (x,)),
    )
    assert transducer_greedy(always_one, torch.zeros(2, 4), per_frame=3) == [1] * 6
