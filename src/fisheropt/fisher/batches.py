"""Batches of data: up to a number of examples, and example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Batch", "batches", "per_example", "rows"]


class Batch(NamedTuple):
    """``inputs``: a tensor, a sequence or a mapping for the model's call; ``targets``: (N, ...); ``size``: N."""

    inputs: Any
    targets: Tensor
    size: int


def batches(data: Iterable[Any], max_examples: int | None) -> Iterator[Batch]:
    """The batches of ``data``, up to ``max_examples`` examples; the last one is cut if need be.

    Raises:
        TypeError: an item of ``data`` is no pair of inputs and targets.
    """
    left = max_examples
    for item in data:
        if left is not None and left <= 0:
            return
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Tensor)):
            raise TypeError(
                "data must yield pairs (inputs, targets) with a tensor of targets, got "
                f"{type(item).__name__}{f' of {len(item)}' if isinstance(item, tuple | list) else ''}; "
                "for other batches, pass a generator: ((b['x'], b['y']) for b in loader)"
            )
        inputs, targets = item
        size = targets.shape[0] if targets.dim() else 0
        if size == 0:
            continue
        if left is not None:
            if size > left:
                inputs = per_example(inputs, size, rows(0, left))
                targets, size = targets[:left], left
            left -= size
        yield Batch(inputs, targets, size)


def rows(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """What cuts these rows out of a tensor."""
    return lambda x: x[start:stop]


def per_example(inputs: Any, size: int, change: Callable[[Tensor], Tensor]) -> Any:
    """``inputs`` with every tensor that has ``size`` rows changed: those belong to examples, others to all of them."""
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.dim() and inputs.shape[0] == size else inputs
    if isinstance(inputs, Mapping):
        return {name: per_example(x, size, change) for name, x in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(per_example(x, size, change) for x in inputs)
    return inputs
