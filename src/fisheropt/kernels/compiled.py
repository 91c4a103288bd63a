"""backend="compile": torch.compile of the rule itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["compiled"]

_SCHEDULED = ("lr", "betas")
_VARIANTS = 64  # dtypes, momentum or none, clip or none, one element or more: each is a graph of its own


def compiled(rule: Callable[..., None]) -> Callable[..., None]:
    """``rule`` compiled once for all sizes, steps, learning rates and betas.

    What a schedule may change at every step, the learning rate and the betas, goes in as tensors: as numbers they
    would be part of the graph, and every step a recompilation. The other options are numbers and part of it. Sizes are
    symbolic. torch stops compiling a function after eight graphs, which the variants of a rule can exceed; the limit
    is raised for the calls made from here.
    """
    graph = torch.compile(rule, dynamic=True, fullgraph=True)

    @wraps(rule)
    def run(*tensors: Tensor | None, **options: Any) -> None:
        scheduled = {name: _scalars(options.pop(name)) for name in _SCHEDULED if name in options}
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS, specialize_float=True):
            graph(*tensors, **scheduled, **options)

    return run


def _scalars(x: float | Tensor | tuple[float, ...]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(x, tuple | list):
        return tuple(torch.tensor(number, dtype=torch.float64) for number in x)
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
