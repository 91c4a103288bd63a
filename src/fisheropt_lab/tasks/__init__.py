"""What can be compared: one entry per task. A new task is a folder beside `text` and a line here."""

from __future__ import annotations

from fisheropt_lab.tasks.digits.task import DIGITS
from fisheropt_lab.tasks.image.task import IMAGE
from fisheropt_lab.tasks.protocol import Asked, Metric, Outline, Setup, Task, TaskKind, Unit
from fisheropt_lab.tasks.speech.task import SPEECH
from fisheropt_lab.tasks.text.task import TEXT

TASKS: dict[str, TaskKind] = {"text": TEXT, "speech": SPEECH, "digits": DIGITS, "image": IMAGE}

__all__ = ["TASKS", "Asked", "Metric", "Outline", "Setup", "Task", "TaskKind", "Unit"]
