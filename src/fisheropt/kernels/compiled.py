"""backend="compile": torch.compile of the rule itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

__all__ = ["compiled"]

_VARIANTS = 64  # dtypes, momentum or not, clip or not, 0- and 1-sized dimensions: each is a graph of its own


def compiled(rule: Callable[..., None]) -> Callable[..., None]:
    """``rule`` compiled once for all sizes, steps and learning rates.

    The learning rate is passed as a tensor: as a number it would be part of the graph, and every change of a schedule
    a recompilation. Sizes are symbolic. torch gives up on a function after eight graphs, which the variants of a rule
    can exceed; the limit is raised for the calls made from here.
    """
    graph = torch.compile(rule, dynamic=True, fullgraph=True)

    @wraps(rule)
    def run(*tensors: Any, lr: float | torch.Tensor, **options: Any) -> None:
        if not isinstance(lr, torch.Tensor):
            lr = torch.tensor(lr, dtype=torch.float64)
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            graph(*tensors, lr=lr, **options)

    return run
