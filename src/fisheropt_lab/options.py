"""Checks of what the user typed that requests and tasks share: one clear line for everything that cannot be."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from fisheropt_lab.errors import LabError


def known(what: str, name: str, names: Collection[str]) -> str:
    """The name, if it is one of the names; else the closest one is suggested."""
    if name not in names:
        close = get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
        raise LabError(f"unknown {what} {name!r}; {hint}")
    return name


def positive(option: str, value: int | None, default: int) -> int:
    """The value, or the default where none was given."""
    if value is None:
        return default
    if value < 1:
        raise LabError(f"{option} must be at least 1, not {value}")
    return value
