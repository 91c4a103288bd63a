"""The micro-batch Fisher of Equation 20: squares of gradients taken where they arise, in the backward pass.

With k micro-batches per step whose losses are each divided by k, as for any step that is to be that of one large batch,
backward pass j adds g_j/k to ``grad``. The gradient of the step is the mean of g_j, and in place of its square stands

    q = mean_j(g_j^2) = k sum_j (g_j/k)^2                                  Equation 20

over the processes of a data-parallel group too, whose gradients are averaged in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from fisheropt._dtensor import is_dtensor
from fisheropt._layout import flat, in_layout_of, is_dense
from fisheropt._loss_scale import overflowed, unscale
from fisheropt._math import square
from fisheropt._optimizer import RuleOptimizer, Work
from fisheropt._shards import Lockstep
from fisheropt._state import Options, factored_dims, matrix_view, working_dtype

__all__ = ["MicrobatchOptimizer", "MicrobatchSquares"]


class MicrobatchSquares:
    """Owns the hooks on parameters that square what arrives, and the sums since the last step."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, tuple[Tensor, int]] = {}  # p -> (sum of squares, backward passes)
        self._handles: dict[Tensor, RemovableHandle] = {}
        self._finalizer = weakref.finalize(self, _remove_all, self._handles)

    def watch(self, params: Iterable[Tensor]) -> None:
        """From now on, also these; those that want no gradient are passed over."""
        for p in params:
            if p.requires_grad and p not in self._handles:
                self._handles[p] = p.register_hook(_hook(self, p))  # type: ignore[no-untyped-call]

    def arrived(self, p: Tensor, g: Tensor) -> None:
        """A backward pass is about to add ``g`` to the gradient of ``p``."""
        with torch.no_grad():
            g2 = square(g.to(working_dtype(p.dtype, None)))
            if p.grad is None or p not in self._sums:  # what came before was dropped with its gradient
                self._sums[p] = g2, 1
            else:
                total, passes = self._sums[p]
                self._sums[p] = total.add_(g2), passes + 1

    def take(self, p: Tensor, scale: float | Tensor) -> Tensor | None:
        """q, in the shape of ``p``, and start anew. None: no backward pass brought its gradient."""
        if p not in self._sums:
            return None
        total, passes = self._sums.pop(p)
        q = total.mul_(passes) if isinstance(scale, float) and scale == 1.0 else total.mul_(passes / scale**2)
        return q.clamp_(max=torch.finfo(q.dtype).max / 2)

    def clear(self) -> None:
        """Forget what arrived."""
        self._sums.clear()


def _hook(owner: MicrobatchSquares, p: Tensor) -> Callable[[Tensor], None]:
    squares, of = weakref.ref(owner), weakref.ref(p)

    def arrived(g: Tensor) -> None:
        owner, p = squares(), of()
        if owner is not None and p is not None:
            owner.arrived(p, g)

    return arrived


def _remove_all(handles: dict[Tensor, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()


class MicrobatchOptimizer(RuleOptimizer):
    """A `RuleOptimizer` whose groups have an option ``fisher``, "batch" or "microbatch". Abstract.

    With "microbatch", `rule_for` returns a rule that takes q after its slots.

    Attributes:
        loss_scale: by which the loss is multiplied before ``backward``, or a function that says so; None: GradScaler
            says it, or there is none.
        process_group: the data-parallel group over which gradients are averaged; None: all processes, if there are any.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self.loss_scale: float | Callable[[], float] | None = None
        self.process_group: Any = None
        self._squares = MicrobatchSquares()
        self._q: dict[Tensor, Tensor] = {}  # during a step
        self._scale: float | Tensor = 1.0
        super().__init__(params, defaults)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return self._squares_wanted()

    def _squares_wanted(self) -> bool:
        return any(group.get("fisher") == "microbatch" for group in self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, at any time; options it does not name take the optimizer's defaults.

        Raises:
            ValueError: an option is unknown or out of its range, or a parameter is in a group already.
            TypeError: a parameter is no tensor, is complex, or is not dense, or is sharded and fisher="microbatch".
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["fisher"] == "microbatch":
            for p in group["params"]:
                if is_dtensor(p):
                    del self.param_groups[-1]
                    raise TypeError(
                        f"fisher='microbatch' does not take sharded (DTensor) parameters, got one of shape "
                        f"{tuple(p.shape)}: their gradients are averaged over processes before anybody sees them; "
                        "use DistributedDataParallel, or fisher='batch'"
                    )
            self._squares.watch(group["params"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo  # torch.compiler.disable would import the whole compiler with this module
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss; called once, with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse. Nothing has been changed then.
            RuntimeError: fisher="microbatch", and the gradients were unscaled by a GradScaler that has not said its
                scale; the message says what to do.
        """
        if not self._squares_wanted():
            return super().step(closure) if closure is not None else super().step()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if overflowed(self):
            self._squares.clear()
            return loss
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._check_gradients(params)
        self._scale = unscale(self, params, self.loss_scale)
        try:
            super().step()
        finally:
            self._scale = 1.0
            self._squares.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and forget the squares of the passes that they came from."""
        super().zero_grad(set_to_none)
        self._squares.clear()

    def _update(self, params: Sequence[Tensor], group: Options, together: Lockstep) -> None:
        if group["fisher"] == "microbatch":
            self._squares.watch(params)  # those that wanted no gradient when they were added
            for p in params:
                assert p.grad is not None
                q = self._squares.take(p, self._scale)
                # a gradient that was set by hand is that of one micro-batch
                self._q[p] = square(p.grad.to(working_dtype(p.dtype, None))) if q is None else q
            self._average(params)
        super()._update(params, group, together)
        self._q.clear()

    def _average(self, params: Sequence[Tensor]) -> None:
        """Over the processes whose gradients DistributedDataParallel averages: one message."""
        distributed = torch.distributed
        if not (params and distributed.is_available() and distributed.is_initialized()):
            return
        processes = distributed.get_world_size(self.process_group)
        if processes == 1:
            return
        message = torch.cat([self._q[p].reshape(-1) for p in params])
        distributed.all_reduce(message, group=self.process_group)
        message /= processes
        for p, q in zip(params, torch.split(message, [p.numel() for p in params]), strict=True):
            self._q[p] = q.view(p.shape)

    def _prepare(self, p: Tensor, group: Options) -> Work:
        work = super()._prepare(p, group)
        if group["fisher"] != "microbatch":
            return work
        q = self._q[p].to(work.g.dtype)
        if work.rule.factored:
            dims = factored_dims(p.shape, group["min_dim_size_to_factor"])
            assert dims is not None
            q = matrix_view(q, dims)
        else:
            q = flat(in_layout_of(p if is_dense(p) else p.contiguous(), q))
        return work._replace(slots=[*work.slots, q])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_squares" not in self.__dict__:  # a copy, with parameters of its own; loading a state_dict comes here too
            self.loss_scale, self.process_group = None, None
            self._squares, self._q, self._scale = MicrobatchSquares(), {}, 1.0
        for group in self.param_groups:
            group.setdefault("fisher", "batch")
            if group["fisher"] == "microbatch":
                self._squares.watch(group["params"])
