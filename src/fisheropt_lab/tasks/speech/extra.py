"""The libraries of the extra `[speech]`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from fisheropt_lab.errors import LabError


def module(name: str) -> Any:
    """The module, or one line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise LabError(
            f"speech needs {name.replace('_', '-')}, which is not installed: pip install 'fisheropt[speech]'"
        ) from None
