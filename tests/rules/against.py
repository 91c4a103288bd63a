"""Running an optimizer and its oracle on the same numbers, and saying where they differ."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tests.cases import OptimizerInfo, gradients, learning_rate, oracle_run, parameter, relative_error, state_of, train

STEPS = 20


class Case(NamedTuple):
    """One tensor after training: where it started, where it came to, and everything needed to do it again."""

    info: OptimizerInfo
    scale: float
    start: torch.Tensor
    p: torch.Tensor
    state: Mapping[str, torch.Tensor]
    grads: torch.Tensor
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"gradients of {self.scale:g}, shape {tuple(self.p.shape)}"


def run(
    info: OptimizerInfo,
    scales: Sequence[float],
    shapes_of: Callable[[float], Iterable[tuple[int, ...]]],
    *,
    dtype: torch.dtype,
    steps: int = STEPS,
    backend: str = "eager",
    **options: Any,
) -> list[Case]:
    """Train one optimizer that has a parameter group per gradient scale."""
    groups, grads = [], {}
    for scale in scales:
        params = [parameter(shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes_of(scale))]
        for i, p in enumerate(params):
            grads[p] = gradients(tuple(p.shape), scale=scale, steps=steps, dtype=dtype, seed=i)
        groups.append({"params": params, "lr": learning_rate(info, options, scale)})
    starts = {p: p.detach().clone() for p in grads}
    optimizer = info.make(groups, backend=backend, **options)
    train(optimizer, grads)
    return [
        Case(info, scale, starts[p], p, state_of(optimizer, p), grads[p], {**options, "lr": group["lr"]})
        for scale, group in zip(scales, groups, strict=True)
        for p in group["params"]
    ]


def errors(case: Case, **oracle: Any) -> Iterator[tuple[str, float]]:
    """(what, relative error) for the parameter, its move, and each slot."""
    expected, reference = oracle_run(case.info, case.start, case.grads, **case.options, **oracle)
    assert case.state.keys() == case.info.slots(tuple(case.p.shape), **case.options) | {"step"}
    assert int(case.state["step"]) == len(case.grads)
    yield "p", relative_error(case.p, expected)
    for slot in sorted(case.state.keys() - {"step"}):
        yield slot, relative_error(case.state[slot], np.asarray(reference.get(slot, np.nan)))
    # The move is a small difference of rounded numbers: p's own rounding, half an ulp a step, is not the rule's error.
    start, p = case.start.double().numpy(), case.p.detach().double().numpy()
    rounding = len(case.grads) * torch.finfo(case.p.dtype).eps / 2 * max(np.abs(start).max(), np.abs(expected).max())
    yield "move", max(0.0, np.abs(p - expected).max() - rounding) / np.abs(expected - start).max()


def beyond(tolerance: float, cases: Iterable[Case], **oracle: Any) -> list[str]:
    """The comparisons that fail, in words."""
    return [
        f"{case}: {what} is {error:.1e} off"
        for case in cases
        for what, error in errors(case, **oracle)
        if not error <= tolerance
    ]
