"""The chunked loss: the numbers of the plain one, and never its memory."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fisheropt.losses import PixelCategorical, pixel_cross_entropy


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators have made and that are still alive; ``peak`` is the most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key, nbytes):
        self.known.discard(key)
        self.live -= nbytes


def problem(n=37, width=5, channels=3, bins=16, dtype=torch.float64):
    head = nn.Linear(width, channels * bins, dtype=dtype)
    hidden = torch.randn(n, width, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(bins, (n, channels))


def plain(head, hidden, target, bins, reduction="mean"):
    logits = head(hidden).reshape(-1, bins)
    return nn.functional.cross_entropy(logits, target.reshape(-1), reduction=reduction)


@pytest.mark.parametrize("chunk_size", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_are_those_of_the_plain_loss(chunk_size, reduction):
    head, hidden, target = problem()
    target[3, 1] = target[30] = -100
    inputs = [hidden, *head.parameters()]
    ours = pixel_cross_entropy(head, hidden, target, bins=16, chunk_size=chunk_size, reduction=reduction)
    expected = plain(head, hidden, target, 16, reduction)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)


def test_it_is_the_mean_nll_of_the_pixel_likelihood():
    head, hidden, target = problem()
    nll = PixelCategorical(16).nll(head(hidden).reshape(-1, 3, 16), target).mean()
    torch.testing.assert_close(pixel_cross_entropy(head, hidden, target, bins=16, chunk_size=8), nll)


def test_images_keep_their_shape_and_bfloat16_is_summed_in_float32():
    head = nn.Linear(5, 3 * 16, dtype=torch.bfloat16)
    hidden, target = torch.randn(2, 4, 6, 5, dtype=torch.bfloat16), torch.randint(16, (2, 4, 6, 3))
    loss = pixel_cross_entropy(head, hidden, target, bins=16, chunk_size=7)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(lambda x: head(x).float(), hidden, target, 16), rtol=1e-6, atol=0)


def test_dropout_in_the_head_draws_the_same_numbers_when_it_runs_again():
    head, hidden, target = problem()
    wet = nn.Sequential(nn.Dropout(0.5), head)
    loss = pixel_cross_entropy(wet, hidden, target, bins=16, chunk_size=37)
    (ours,) = torch.autograd.grad(loss, hidden)
    dropped = ours == 0
    torch.manual_seed(1)
    (again,) = torch.autograd.grad(plain(head, hidden * torch.where(dropped, 0.0, 2.0), target, 16), hidden)
    torch.testing.assert_close(ours, again, rtol=1e-11, atol=1e-14)
    assert 0.3 < dropped.double().mean() < 0.7


def test_the_logits_of_a_batch_never_exist_at_once():
    """Peak memory, saved tensors included, in a forward and a backward pass: a few chunks, where the plain loss has
    logits, their logarithms and their gradient."""
    n, bins, chunk = 1024, 256, 32
    head, hidden, target = problem(n, width=4, bins=bins, dtype=torch.float32)
    logits = n * 3 * bins * 4  # bytes

    def peak_of(loss):
        with LiveBytes() as memory:
            loss().backward()
        return memory.peak

    ours = peak_of(lambda: pixel_cross_entropy(head, hidden, target, bins=bins, chunk_size=chunk))
    theirs = peak_of(lambda: plain(head, hidden, target, bins))
    assert theirs > 2 * logits  # the instrument sees what is there
    assert ours < 5 * logits * chunk / n + 8 * n * 3 * 4  # chunks in flight, and numbers per target
    assert ours < theirs / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be >= 1, got 0"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"bins": 8}, r"head must map \(n, 5\) to \(n, channels \* bins\) = \(n, 24\), got \(37, 48\)"),
        ({"target": torch.zeros(36, 3)}, r"must agree but for the last dimension, got \(37, 5\) and \(36, 3\)"),
    ],
)
def test_bad_input_is_named(change, message):
    head, hidden, target = problem()
    options = {"target": target, "bins": 16} | change
    with pytest.raises(ValueError, match=message):
        pixel_cross_entropy(head, hidden, **options)
