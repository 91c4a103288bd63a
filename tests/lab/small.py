"""Studies small enough for tests: the real task and model, a few kilobytes of text, a handful of steps."""

from dataclasses import asdict
from pathlib import Path

from tests.lab.records import spec

from fisheropt_lab.spec import Spec
from fisheropt_lab.tasks.digits.task import DigitsSettings, DigitsTask
from fisheropt_lab.tasks.text.task import TextSettings, TextTask

SENTENCES = "".join(f"Sentence number {i} is here, and {i * i % 97} is its remainder.\n" for i in range(120))


def text_file(folder: Path) -> Path:
    """About six kilobytes of text, of which validation and test get some 300 bytes each."""
    path = folder / "sentences.txt"
    path.write_text(SENTENCES, encoding="utf-8")
    return path


def small_task(folder: Path) -> TextTask:
    return TextTask(TextSettings(size="tiny", batch_size=2, seq_len=16, data=str(text_file(folder))))


def small_spec(task: TextTask, lrs: dict[str, tuple[float, ...]], **changes: object) -> Spec:
    small = {
        "settings": asdict(task.settings),
        "data": task.describe_data(),
        "steps": 8,
        "warmup": 2,
        "eval_every": 3,
        "seeds": (1, 2),
        "backend": "eager",
        "threads": 1,
    }
    return spec(lrs, **(small | changes))


def digits_spec(lrs: dict[str, tuple[float, ...]], **changes: object) -> Spec:
    """The quickest study there is: a few steps of the convolutional network."""
    settings = DigitsSettings(batch_size=8)
    small = {
        "task": "digits",
        "settings": asdict(settings),
        "data": DigitsTask(settings).describe_data(),
        "steps": 6,
        "warmup": 1,
        "eval_every": 3,
        "seeds": (1, 2),
        "backend": "eager",
        "threads": 1,
    }
    return spec(lrs, **(small | changes))
