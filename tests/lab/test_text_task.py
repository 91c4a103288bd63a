import math

import torch
from tests.lab.small import SENTENCES, small_task
from torch import nn


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    task, again = small_task(tmp_path), small_task(tmp_path)
    batches = {(seed, step): task.batch(seed, step)[0] for seed in (0, 1) for step in (0, 1)}
    for (seed, step), inputs in batches.items():
        assert torch.equal(inputs, again.batch(seed, step)[0])
    assert len({tuple(inputs.flatten().tolist()) for inputs in batches.values()}) == 4


def test_targets_are_the_next_bytes_of_the_training_split(tmp_path):
    task = small_task(tmp_path)
    train = SENTENCES.encode()[: len(task.corpus.train)]
    inputs, targets = task.batch(seed=3, step=5)
    assert inputs.shape == targets.shape == (2, 16)
    for x, y in zip(inputs, targets, strict=True):
        assert bytes([*x.tolist(), y[-1].item()]) in train
        assert torch.equal(x[1:], y[:-1])


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_callers_random_numbers_alone(tmp_path):
    task = small_task(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (task.model(seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


class Unigram(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, 256)


def test_evaluation_is_the_mean_over_the_bytes_of_the_split(tmp_path):
    """Against the same mean taken byte by byte, for both splits; the last batch is a smaller one."""
    task = small_task(tmp_path)
    logits = torch.linspace(-1, 1, 256, dtype=torch.float64)
    nats = -logits.log_softmax(0)
    sizes = task.corpus.sizes()
    first = {"validation": sizes["train"], "test": sizes["train"] + sizes["validation"]}
    for split, start in first.items():
        windows = (sizes[split] - 1) // 16
        predicted = SENTENCES.encode()[start + 1 : start + 1 + 16 * windows]
        expected = sum(nats[byte].item() for byte in predicted) / len(predicted)
        loss = task.evaluate(Unigram(logits), split, torch.device("cpu"))
        assert math.isclose(loss, expected, rel_tol=1e-6)
        assert task.describe_data()["evaluated_bytes"][split] == 16 * windows
