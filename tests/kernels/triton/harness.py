"""Optimizers on the kernels, eagerly and by the oracle, on the same numbers and wherever the kernels run."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.cases import INFO, OptimizerInfo, oracle_run, relative_error

from fisheropt import kernels
from fisheropt.kernels.triton import _plan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = 2e-7  # the last bit or two of a float32


@pytest.fixture
def switched(monkeypatch):
    """backend="triton" wherever the kernels run, which without a GPU is the interpreter on the CPU."""
    monkeypatch.setitem(kernels._FUSED, DEVICE.type, "triton")
    kernels.implementation.cache_clear()
    yield
    kernels.implementation.cache_clear()


class Run(NamedTuple):
    """Where an optimizer came to. Tensors on the CPU; ``state`` without the step."""

    p: list[torch.Tensor]
    state: list[dict[str, torch.Tensor]]

    @property
    def numbers(self) -> list[torch.Tensor]:
        return [*self.p, *(slot for slots in self.state for _, slot in sorted(slots.items()))]


def run(
    info: OptimizerInfo,
    starts: list[torch.Tensor],
    grads: list[torch.Tensor],
    *,
    backend: str = "triton",
    forgetful: bool = False,
    **options: Any,
) -> Run:
    """Steps from ``starts``; ``grads``: (steps, *shape) of each tensor; ``forgetful``: with a new plan every step."""
    params = [start.to(DEVICE, copy=True).requires_grad_() for start in starts]
    optimizer = info.make(params, backend=backend, **options)
    if backend == "triton":
        assert set(optimizer.backends().values()) == {"triton"}
    for rows in zip(*grads, strict=True):
        for p, g in zip(params, rows, strict=True):
            p.grad = g.to(DEVICE, copy=True)
        if forgetful:
            _plan._plan.cache_clear()
        optimizer.step()
    state = [{name: slot.cpu() for name, slot in optimizer.state[p].items() if name != "step"} for p in params]
    return Run([p.detach().cpu() for p in params], state)


def lawless(info: OptimizerInfo, starts: list[torch.Tensor], grads: list[torch.Tensor], **options: Any) -> list[str]:
    """Where err(kernel) <= 2 err(eager) + tiny does not hold, both against the oracle, in words."""
    kernel = run(info, starts, grads, **options)
    eager = run(info, starts, grads, backend="eager", **options)
    found = []
    for i, (start, rows) in enumerate(zip(starts, grads, strict=True)):
        p, state = oracle_run(info, start, rows, **options)
        tiny = max(TINY, torch.finfo(start.dtype).eps / 2) if start.dtype != torch.float32 else TINY
        for what, mine, theirs, reference, slack in [
            ("p", kernel.p[i], eager.p[i], p, tiny),
            *((s, kernel.state[i][s], eager.state[i][s], np.asarray(state[s]), TINY) for s in kernel.state[i]),
        ]:
            error, allowed = relative_error(mine, reference), 2 * relative_error(theirs, reference) + slack
            if not error <= allowed:
                found.append(f"{what} of shape {tuple(start.shape)}: {error:.1e} off, allowed {allowed:.1e}")
    return found


RULES = tuple(INFO[name] for name in ("FAdam", "FAdafactor", "Adam"))
"""Optimizers whose rules have kernels here."""
