"""State declared as data: what a rule keeps for a tensor, how large it is and how it starts.

A `Rule` is a rule function together with its `Slot`s. From these declarations come the initialisation, the check when
a state_dict is loaded, the memory table and the documentation; nothing about state is written anywhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from fisheropt._dtensor import is_dtensor, without_dim
from fisheropt._pages import in_large_pages

__all__ = ["Options", "Rule", "Slot", "StateDtype", "factored_dims", "matrix_view", "needs_momentum", "working_dtype"]

Options = Mapping[str, Any]
"""The options of a parameter group, as in ``optimizer.param_groups[i]``."""


StateDtype = torch.dtype | Literal["int8"] | None
"""How state is kept: None is float32, or float64 for float64 parameters; bfloat16 and "int8" round stochastically."""


def working_dtype(dtype: torch.dtype, state_dtype: torch.dtype | str | None) -> torch.dtype:
    """The precision a rule runs in for a parameter of ``dtype``: float32, or float64 where either asks for it."""
    return torch.float64 if torch.float64 in (dtype, state_dtype) else torch.float32


@cache
def factored_dims(shape: torch.Size, min_dim_size_to_factor: int) -> tuple[int, int] | None:
    """The (row, column) dimensions a tensor is factored over, or None where it keeps one number per element (SPEC D10).

    They are the two largest dimensions, the later ones among equals; the earlier of the two is the row dimension.
    """
    if len(shape) < 2:
        return None
    second, largest = sorted(range(len(shape)), key=lambda d: (shape[d], d))[-2:]
    if shape[second] < min_dim_size_to_factor:
        return None
    return min(second, largest), max(second, largest)


def matrix_view(x: Tensor, dims: tuple[int, int]) -> Tensor:
    """``x`` seen as a batch of matrices ``(..., n, k)``, the factored dimensions last. A view."""
    return x if dims == (x.dim() - 2, x.dim() - 1) else x.movedim(dims, (-2, -1))


def needs_momentum(options: Options) -> bool:
    """True if the group's options keep a momentum at all."""
    return bool(options["betas"][0] > 0.0 and options.get("momentum", True))


def _always(options: Options) -> bool:
    return True


@dataclass(frozen=True)
class Slot:
    """One tensor of state per parameter.

    Attributes:
        name: the paper's letter; the rule's argument and the key in ``optimizer.state[p]``.
        doc: one line for people.
        init: the value every element starts from.
        summed_over: the factored dimension that is summed away: ``"columns"`` leaves a number per row, ``"rows"`` a
            number per column, None a number per element in the memory layout of the parameter.
        signed: it takes both signs; where not, small numbers matter more than large ones (8-bit storage).
        needed: ``needed(group options)``; a slot that is not needed is not allocated and reaches the rule as None.
    """

    name: str
    doc: str
    init: float = 0.0
    summed_over: Literal["rows", "columns"] | None = None
    signed: bool = False
    needed: Callable[[Options], bool] = _always

    @property
    def optional(self) -> bool:
        return self.needed is not _always

    def shape(self, shape: torch.Size, options: Options) -> tuple[int, ...]:
        """The slot's shape for a parameter of ``shape``."""
        if self.summed_over is None:
            return tuple(shape)
        gone = self._gone(shape, options)
        return tuple(size for d, size in enumerate(shape) if d != gone)

    def view(self, x: Tensor, dims: tuple[int, int]) -> Tensor:
        """The slot as a factored rule sees it: ``(..., n, k)``, ``(..., n)`` or ``(..., k)``."""
        if self.summed_over is None:
            return matrix_view(x, dims)
        if x.dim() == 1:
            return x
        row, column = dims
        return x.movedim(row if self.summed_over == "columns" else column - 1, -1)

    def allocate(self, p: Tensor, options: Options, dtype: torch.dtype) -> Tensor:
        """The slot of parameter ``p`` at the start."""
        if self.summed_over is None:
            if is_dtensor(p):
                return torch.full_like(p, self.init, dtype=dtype, requires_grad=False)
            return in_large_pages(torch.empty_like(p, dtype=dtype, requires_grad=False)).fill_(self.init)
        if is_dtensor(p):
            return without_dim(p, self._gone(p.shape, options), self.init, dtype)
        return torch.full(self.shape(p.shape, options), self.init, dtype=dtype, device=p.device)

    def _gone(self, shape: torch.Size, options: Options) -> int:
        """The dimension of the parameter that is summed away."""
        dims = factored_dims(shape, options["min_dim_size_to_factor"])
        assert dims is not None, "a rule with factored slots was chosen for a tensor that is not factored"
        row, column = dims
        return column if self.summed_over == "columns" else row


@dataclass(frozen=True)
class Rule:
    """A rule function with what it keeps.

    Attributes:
        function: ``function(p, g, step, *slots, **options)``: changes p and its slots in place, never g.
        slots: in the order of the function's arguments.
        factored: the function sees matrices ``(..., n, k)`` instead of flat vectors.
        shaped: the function sees tensors in their own shapes and strides instead of flat vectors.
        local: the function asks for no statistic of a whole tensor, so it runs on a shard as on anything else.
        declared: arguments that are the class's affair and no option of a group.
        options: names of the group options the function takes; read off its signature.
    """

    function: Callable[..., None]
    slots: tuple[Slot, ...]
    factored: bool = False
    shaped: bool = False
    local: bool = False
    declared: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function).parameters.values()
        options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.declared)
        object.__setattr__(self, "options", options)

    def arguments(self, group: Options) -> dict[str, Any]:
        """What the function takes beside tensors, for a group."""
        return {**self.declared, **{name: group[name] for name in self.options}}
