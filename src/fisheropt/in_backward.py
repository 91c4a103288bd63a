"""Step each tensor the moment its gradient is complete, inside ``backward``, and free the gradient at once.

Nothing in these rules couples one tensor to another, so the result is that of an ordinary step, bit for bit, and the
gradients of the whole model never exist together.

Under `fully_shard` the gradient of a shard is complete when it has been reduced, and the hooks run then. Under
DistributedDataParallel they run before, with the gradient of this process alone, so that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from fisheropt._optimizer import RuleOptimizer

__all__ = ["StepInBackward", "step_in_backward"]


class StepInBackward:
    """What `step_in_backward` returns.

    Attributes:
        optimizer: the optimizer the factory made. Learning-rate schedulers take it as ever, and a training loop that
            calls its ``step`` and ``zero_grad`` stays as it is: they find no gradient left and do nothing.
    """

    def __init__(self, model: Module, optimizer: RuleOptimizer) -> None:
        self.optimizer = optimizer
        # load_state_dict replaces the group dicts, so we remember their places
        self._handles: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(self._stepper(i))
            for i, group in enumerate(optimizer.param_groups)
            for p in group["params"]
            if p.requires_grad
        ]
        self._handles.append(model.register_forward_pre_hook(_refuse_ddp))

    def _stepper(self, group: int) -> Callable[[Tensor], None]:
        optimizer = self.optimizer

        def step_and_free(p: Tensor) -> None:
            optimizer.step_tensor(p, optimizer.param_groups[group])
            p.grad = None

        return step_and_free

    def state_dict(self) -> dict[str, Any]:
        """``optimizer.state_dict()``: the same as without step_in_backward, and interchangeable with it."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """``optimizer.load_state_dict(state_dict)``."""
        self.optimizer.load_state_dict(state_dict)

    def remove(self) -> None:
        """Go back to ordinary steps: from now on ``backward`` leaves gradients and ``optimizer.step()`` uses them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def step_in_backward(model: Module, factory: Callable[[Iterable[Parameter]], RuleOptimizer]) -> StepInBackward:
    """Make ``backward`` step every parameter of ``model`` as soon as its gradient is complete, and free the gradient.

    Every ``backward`` is a step. What needs all gradients at once, or changes them between ``backward`` and the step,
    cannot be combined with it: gradient accumulation over several backwards, gradient clipping by a norm over
    tensors, ``torch.amp.GradScaler``. Step hooks of the optimizer do not run.

    Under FSDP2 each tensor communicates for itself, twice or three times, instead of all tensors together.

    Args:
        model: its parameters that require gradients are stepped.
        factory: makes the optimizer from them, for instance ``functools.partial(FAdam, lr=1e-3)``.

    Returns:
        A handle with the ``optimizer``, ``state_dict()``, ``load_state_dict()`` and ``remove()``.

    Raises:
        TypeError: the factory returned something else than an optimizer of this library, or the model is a
            DistributedDataParallel.
        ValueError: a parameter has a gradient already, which the next ``backward`` would add to.
        RuntimeError: at the forward pass, the model runs inside a DistributedDataParallel.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> handle = fisheropt.step_in_backward(model, lambda params: fisheropt.FAdam(params, lr=1e-3))
        >>> model(torch.ones(1, 4)).square().mean().backward()  # the step is done
        >>> model.weight.grad is None
        True
    """
    if isinstance(model, DistributedDataParallel):
        raise TypeError(_NOT_UNDER_DDP)
    params = [p for p in model.parameters() if p.requires_grad]
    if any(p.grad is not None for p in params):
        raise ValueError("model has gradients left from an earlier backward; call model.zero_grad() first")
    optimizer = factory(params)
    if not isinstance(optimizer, RuleOptimizer):
        raise TypeError(
            f"factory must return an optimizer of fisheropt, got {type(optimizer).__name__}; "
            "for one of torch.optim, make an optimizer per parameter and step it in a post-accumulate-grad hook"
        )
    with torch.no_grad():
        return StepInBackward(model, optimizer)


_NOT_UNDER_DDP = (
    "step_in_backward does not work under DistributedDataParallel, which averages gradients only after they have been "
    "used here: every process would go its own way. Use torch.distributed.fsdp.fully_shard, or ordinary steps"
)


def _refuse_ddp(model: Module, args: Any) -> None:
    """A forward pre-hook: the model may have been wrapped later."""
    if not torch.compiler.is_compiling() and getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
        raise RuntimeError(_NOT_UNDER_DDP)
