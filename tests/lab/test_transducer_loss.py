"""The transducer's loss against every alignment written out, finite differences, and a joint network run at once."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fisheropt_lab.tasks.speech.transducer_loss import node_log_probabilities, transducer_loss


def summed_over_alignments(blank: np.ndarray, label: np.ndarray) -> float:
    """-log of the sum of the probabilities of all paths, one after the other: (T, U + 1), (T, U)."""
    frames, labels = label.shape

    def from_here(t: int, u: int) -> float:
        written = math.exp(label[t, u]) * from_here(t, u + 1) if u < labels else 0.0
        if t + 1 < frames:
            return written + math.exp(blank[t, u]) * from_here(t + 1, u)
        return written + (math.exp(blank[t, u]) if u == labels else 0.0)

    return -math.log(from_here(0, 0))


def log_probabilities(seed: int, B: int, T: int, U: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(B, T, U + 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    log_p = (2 * logits).log_softmax(-1)
    return log_p[..., 0].contiguous(), log_p[:, :, :-1, 1].contiguous()


FRAMES = torch.tensor([5, 3, 1, 4, 5])
LABELS = torch.tensor([3, 4, 2, 0, 4])


def test_it_is_the_sum_over_all_alignments():
    blank, label = log_probabilities(0, 5, 5, 4)
    loss = transducer_loss(blank, label, FRAMES, LABELS)
    for b, (t, u) in enumerate(zip(FRAMES.tolist(), LABELS.tolist(), strict=True)):
        expected = summed_over_alignments(blank[b, :t, : u + 1].numpy(), label[b, :t, :u].numpy())
        assert loss[b].item() == pytest.approx(expected, rel=1e-13)


def test_gradient_is_that_of_finite_differences():
    blank, label = (x.requires_grad_() for x in log_probabilities(1, 5, 5, 4))
    assert torch.autograd.gradcheck(lambda b, s: transducer_loss(b, s, FRAMES, LABELS), (blank, label))


def test_what_lies_beyond_an_utterance_does_not_matter():
    blank, label = log_probabilities(2, 5, 5, 4)
    outside = (torch.arange(5)[:, None] >= FRAMES[:, None, None]) | (torch.arange(5) > LABELS[:, None, None])
    wild = blank.masked_fill(outside, torch.nan).requires_grad_()
    loss = transducer_loss(wild, label, FRAMES, LABELS)
    loss.sum().backward()
    assert torch.equal(loss, transducer_loss(blank, label, FRAMES, LABELS))
    assert torch.equal(wild.grad[outside], torch.zeros_like(wild.grad[outside]))


def test_long_utterances_stay_exact_in_float32():
    blank, label = (x.float() for x in log_probabilities(3, 2, 300, 200))
    frames, labels = torch.tensor([300, 250]), torch.tensor([200, 10])
    wide = transducer_loss(blank.double(), label.double(), frames, labels)
    assert torch.allclose(transducer_loss(blank, label, frames, labels).double(), wide, rtol=1e-7)


def test_every_frame_is_left_once_and_every_label_written_once():
    blank, label = (x.requires_grad_() for x in log_probabilities(4, 5, 5, 4))
    transducer_loss(blank, label, FRAMES, LABELS).sum().backward()
    assert torch.allclose(-blank.grad.sum((1, 2)), FRAMES.double())
    assert torch.allclose(-label.grad.sum((1, 2)), LABELS.double())


class Joint(nn.Module):
    """Remembers how many logits it made at a time."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 6, dtype=torch.float64)
        self.largest = 0

    def forward(self, encoded, predicted):
        logits = self.out(torch.tanh(encoded[:, :, None] + predicted[:, None]))
        self.largest = max(self.largest, logits.numel())
        return logits


@pytest.mark.parametrize("at_once", [1, 40, 10_000])
def test_the_joint_network_runs_in_pieces_with_the_same_loss_and_gradients(at_once):
    generator = torch.Generator().manual_seed(5)
    encoded = torch.randn(2, 9, 4, dtype=torch.float64, generator=generator).requires_grad_()
    predicted = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    targets, frames, labels = torch.tensor([[1, 2, 3, 4], [5, 5, 1, 1]]), torch.tensor([9, 6]), torch.tensor([4, 2])
    torch.manual_seed(6)
    joint = Joint()

    def gradients(blank, label):
        loss = transducer_loss(blank, label, frames, labels).sum()
        return torch.autograd.grad(loss, (encoded, predicted, *joint.parameters()))

    log_p = joint(encoded, predicted).float().log_softmax(-1)
    at_once_label = log_p[:, :, :-1].gather(-1, targets[:, None, :, None].expand(-1, 9, -1, -1)).squeeze(-1)
    whole = gradients(log_p[..., 0], at_once_label)
    joint.largest = 0
    pieces = gradients(*node_log_probabilities(joint, encoded, predicted, targets, at_once))
    assert joint.largest <= max(at_once, 2 * 5) * 6
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("frames", "labels", "names"),
    [([0, 1, 1, 1, 1], [0] * 5, "frames must be in"), ([6, 1, 1, 1, 1], [0] * 5, "frames must be in"),
     ([5] * 5, [5, 0, 0, 0, 0], "labels must be in")],
)  # fmt: skip
def test_lengths_out_of_range_are_refused(frames, labels, names):
    blank, label = log_probabilities(0, 5, 5, 4)
    with pytest.raises(ValueError, match=names):
        transducer_loss(blank, label, torch.tensor(frames), torch.tensor(labels))


def test_shapes_that_do_not_fit_are_refused():
    blank, label = log_probabilities(0, 5, 5, 4)
    with pytest.raises(ValueError, match="label"):
        transducer_loss(blank, label[..., :-1], FRAMES, LABELS)
