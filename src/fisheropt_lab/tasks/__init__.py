"""What can be compared: one entry per task. A new task is a folder beside `text` and a line here."""

from __future__ import annotations

from fisheropt_lab.tasks.protocol import Task, Unit
from fisheropt_lab.tasks.text.task import TextTask

TASKS = {"text": TextTask}

__all__ = ["TASKS", "Task", "Unit"]
