import numpy as np
import pytest
import torch
from torch import nn

from fisheropt_lab.models.convnet import ConvNet
from fisheropt_lab.tasks.digits.images import load_images, split
from fisheropt_lab.tasks.digits.task import DigitsSettings, DigitsTask


@pytest.fixture(scope="module")
def task():
    return DigitsTask(DigitsSettings(batch_size=8))


def test_parts_are_disjoint_and_complete(task):
    indices = np.concatenate([part.indices for part in task.parts.values()])
    assert sorted(indices) == list(range(1797))
    assert [len(part) for part in task.parts.values()] == [1078, 360, 359]


def test_every_digit_is_divided_alike(task):
    counts = {name: torch.bincount(part.digits, minlength=10) for name, part in task.parts.items()}
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert (counts[name] - share * sum(counts.values())).abs().max() <= 1


def test_the_split_is_a_function_of_the_digits_alone(task):
    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter
    again = load_images()
    for name, part in task.parts.items():
        assert np.array_equal(part.indices, again[name].indices)
        assert torch.equal(part.pixels, again[name].pixels)
    assert not np.array_equal(split(np.zeros(20, dtype=np.int64))["train"], np.arange(12)), "shuffled"


def test_pixels_are_between_zero_and_one(task):
    for part in task.parts.values():
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert part.pixels.min() == 0
        assert part.pixels.max() == 1


def test_a_batch_is_a_function_of_seed_and_step_and_of_training_images(task):
    again = DigitsTask(DigitsSettings(batch_size=8))
    train = {(image.numpy().tobytes(), int(d)) for image, d in zip(*_pair(task.parts["train"]), strict=True)}
    seen = set()
    for seed in (0, 1):
        for step in (0, 1):
            pixels, digits = task.batch(seed, step)
            assert torch.equal(pixels, again.batch(seed, step)[0])
            assert {(image.numpy().tobytes(), int(d)) for image, d in zip(pixels, digits, strict=True)} <= train
            seen.add(pixels.numpy().tobytes())
    assert len(seen) == 4


def _pair(part):
    return part.pixels, part.digits


class Always(nn.Module):
    """Says the same digit with probability one half whatever it sees, and the others evenly."""

    def __init__(self, digit):
        super().__init__()
        self.probabilities = torch.full((10,), 0.5 / 9)
        self.probabilities[digit] = 0.5

    def forward(self, pixels):
        return self.probabilities.log().expand(len(pixels), 10)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_loss_and_accuracy_are_means_over_the_part(task, name):
    cpu, model = torch.device("cpu"), Always(3)
    share = (task.parts[name].digits == 3).double().mean().item()
    expected = -(share * np.log(0.5) + (1 - share) * np.log(0.5 / 9))
    assert task.evaluate(model, name, cpu) == pytest.approx(expected, rel=1e-5)
    assert task.metrics(model, name, cpu) == {"accuracy": pytest.approx(share)}


def test_initial_weights_are_a_function_of_the_seed(task):
    first, again, other = (task.model(seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_the_number_of_parameters_is_the_one_in_the_docs():
    assert f"{sum(p.numel() for p in ConvNet().parameters()):,} parameters" in ConvNet.__doc__
