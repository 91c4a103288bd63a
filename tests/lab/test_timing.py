import pytest
from tests.lab.small import digits_spec

from fisheropt_lab.optimizers import contender
from fisheropt_lab.tasks.digits.task import DigitsSettings, DigitsTask
from fisheropt_lab.timing import measure_step_times, typical


def test_a_typical_time_is_the_median():
    assert typical([1.0, 9.0, 2.0], period=1) == 2.0


def test_an_expensive_step_in_ten_is_not_hidden():
    times = ([11.0] + [1.0] * 9) * 3
    times[4] = 500.0  # something else the machine did
    assert typical(times, period=1) == 1.0
    assert typical(times, period=10) == pytest.approx(2.0)


def test_the_control_has_the_grid_of_its_owner_at_its_damping():
    assert [contender("adafisher").control_lr(lr) for lr in (0.0025, 0.01, 0.1)] == [2.5, 10.0, 100.0]


def test_watched_models_are_not_shared(monkeypatch):
    """Hooks of AdaFisher on a model that others step too would cost them time, and it would see their passes."""
    monkeypatch.setattr("fisheropt_lab.timing.TIMED_SECONDS", 0)
    task = DigitsTask(DigitsSettings(batch_size=4))
    made = []
    monkeypatch.setattr(task, "model", lambda seed: made.append(DigitsTask.model(task, seed)) or made[-1])
    lrs = {"adafisher": (1.0,), "sgd": (1.0,), "adamw": (1.0,), "adafisherw": (1.0,)}
    times = measure_step_times(task, digits_spec(lrs))
    assert list(times) == list(lrs)
    assert all(time.rounds == 30 for time in times.values())
    assert len(made) == 3  # one is shared
