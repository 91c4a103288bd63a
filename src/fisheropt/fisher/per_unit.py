"""The gradient of every unit with respect to the parameters of a layer, from what went in and what came back.

With input x and gradient s with respect to the output, both split by unit u (an example) and position t within it:

==============================  ==================================================================================
layer                           gradient of unit u
==============================  ==================================================================================
Linear                          weight: sum_t s_ut x_ut' ; bias: sum_t s_ut
Conv1d, 2d, 3d                  the same, x_ut being the patch at position t, in each group
Embedding                       row v: sum of s_ut over the positions t where v was looked up
LayerNorm, GroupNorm, RMSNorm,  weight: sum_t s_ut xhat_ut, xhat the normalised input ; bias: sum_t s_ut
BatchNorm in eval mode
==============================  ==================================================================================

The diagonal of the Fisher information is the sum of their squares over units. With one position per unit the square of
a product is the product of the squares, and one matrix product of squares is all; otherwise gradients are formed for
as many units at a time as fit into a cache. Either way they are never all there at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisheropt.fisher.factors import ConvLayer, EmbeddingLayer, LinearLayer, layer_of

__all__ = ["Formula", "chunk_of", "formula_of", "leaf_formula"]

_BUDGET = {"cpu": 1 << 18}  # numbers of per-unit gradients at a time: a megabyte stays in a cache
_BUDGET_ELSEWHERE = 1 << 26


def chunk_of(numbers: int, device: torch.device) -> int:
    """How many units to take at a time if each needs so many numbers, >= 1."""
    return max(1, _BUDGET.get(device.type, _BUDGET_ELSEWHERE) // max(1, numbers))


class Formula(Protocol):
    """Of one kind of layer. ``x`` and ``s`` are as `by_unit` returned them, units first, in one dtype."""

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        """An input and a gradient split by unit: None if their first dimension cannot be that of the units."""
        ...

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        """The gradient of each unit: (units, *shape of the parameter)."""
        ...

    def squares(self, role: str, x: Tensor, s: Tensor) -> Tensor | None:
        """The sum over units of the squares where there is a shorter way to it, else None."""
        ...

    def scratch(self, x: Tensor) -> int:
        """How many numbers `gradient` needs per unit beside its result."""
        ...


class _Base:
    """What a formula is unless it says otherwise."""

    def squares(self, role: str, x: Tensor, s: Tensor) -> Tensor | None:
        return None

    def scratch(self, x: Tensor) -> int:
        return 0


@dataclass(frozen=True)
class _Linear(_Base):
    layer: LinearLayer

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        if not _has_units(x, 1, units):
            return None
        return x.reshape(units, -1, self.layer.inputs), s.reshape(units, -1, self.layer.outputs)

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        return s.sum(1) if role == "bias" else s.mT @ x

    def squares(self, role: str, x: Tensor, s: Tensor) -> Tensor | None:
        if role == "bias":
            return s.sum(1).square_().sum(0)
        if x.shape[1] == 1:
            return s.squeeze(1).square().mT @ x.squeeze(1).square()
        return None


@dataclass(frozen=True)
class _Conv(_Base):
    layer: ConvLayer

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        spatial = len(self.layer.kernel)
        if x.dim() == spatial + 1:
            x, s = x.unsqueeze(0), s.unsqueeze(0)
        if not _has_units(x, spatial + 1, units):
            return None
        return x.reshape(units, -1, *x.shape[1:]), s.reshape(units, -1, *s.shape[1:])

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        units, images, groups = s.shape[0], s.shape[1], self.layer.groups
        if role == "bias":
            return s.transpose(1, 2).flatten(2).sum(2)
        patches = self._patches(x.flatten(0, 1)).reshape(units, images, groups, self.layer.inputs // groups, -1)
        s = s.reshape(units, images, groups, self.layer.outputs // groups, -1)
        gradient = (s @ patches.mT).sum(1)  # (units, groups, outputs / groups, inputs / groups)
        return gradient.reshape(units, self.layer.outputs, self.layer.channels // groups, *self.layer.kernel)

    def scratch(self, x: Tensor) -> int:
        return x[0].numel() * math.prod(self.layer.kernel)

    def _patches(self, x: Tensor) -> Tensor:
        """(images, channels, *spatial) -> (images, channels, *kernel, *positions)."""
        layer, spatial = self.layer, len(self.layer.kernel)
        q = functional.pad(x, layer.pad, layer.mode)
        for d, (k, stride, dilation) in enumerate(
            zip(layer.kernel, layer.stride, layer.dilation, strict=True), start=2
        ):
            q = q.unfold(d, dilation * (k - 1) + 1, stride)[..., ::dilation]  # (..., positions, ..., k)
        return q.permute(0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))


@dataclass(frozen=True)
class _Embedding(_Base):
    layer: EmbeddingLayer

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        if not _has_units(x, 0, units):
            return None
        x, s = x.reshape(units, -1), s.reshape(units, -1, self.layer.outputs)
        if self.layer.padding_idx is not None:
            s = s.masked_fill((x == self.layer.padding_idx).unsqueeze(-1), 0.0)
        return x, s

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        rows, gradients = self._rows(x, s)
        whole = s.new_zeros(x.shape[0] * self.layer.inputs, self.layer.outputs).index_copy_(0, rows, gradients)
        return whole.view(x.shape[0], self.layer.inputs, self.layer.outputs)

    def squares(self, role: str, x: Tensor, s: Tensor) -> Tensor | None:
        rows, gradients = self._rows(x, s)
        total = s.new_zeros(self.layer.inputs, self.layer.outputs)
        return total.index_add_(0, rows % self.layer.inputs, gradients.square_())

    def _rows(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """``unit * inputs + row`` of each row that a unit looked up, and its gradient."""
        key = x + self.layer.inputs * torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        rows, which = torch.unique(key, return_inverse=True)
        return rows, s.new_zeros(rows.numel(), self.layer.outputs).index_add_(0, which.flatten(), s.flatten(0, 1))


@dataclass(frozen=True)
class _Norm(_Base):
    """Normalises, then scales and shifts.

    Attributes:
        normalise: x -> xhat, in the shape of x.
        features: dimensions of the scale, at the end of x if ``last`` and after the units if not.
        last: where they are.
    """

    normalise: Callable[[Tensor], Tensor]
    features: int
    last: bool

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        own = self.features if self.last else x.dim() - 1  # dimensions that are within a unit for certain
        if x.dim() < 1 + self.features or not _has_units(x, own, units):
            return None
        xhat = self.normalise(x)
        return tuple(self._positions(t, units) for t in (xhat, s))  # type: ignore[return-value]

    def _positions(self, t: Tensor, units: int) -> Tensor:
        """(units, positions, *features)"""
        if self.last:
            return t.reshape(units, -1, *t.shape[t.dim() - self.features :])
        return t.reshape(units, t.shape[0] // units, t.shape[1], -1).movedim(2, -1).flatten(1, 2)

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        return s.sum(1) if role == "bias" else (s * x).sum(1)


@dataclass(frozen=True)
class _Leaf(_Base):
    """Any module without children: autograd, unit by unit, through this module alone."""

    module: nn.Module

    def by_unit(self, x: Tensor, s: Tensor, units: int) -> tuple[Tensor, Tensor] | None:
        if not (_has_units(x, 0, units) and _has_units(s, 0, units)):
            return None
        if units == 1:
            return x.unsqueeze(0), s.unsqueeze(0)
        return tuple(t.reshape(units, t.shape[0] // units, *t.shape[1:]) for t in (x, s))  # type: ignore[return-value]

    def gradient(self, role: str, x: Tensor, s: Tensor) -> Tensor:
        own = {name: t.detach() for name, t in (*self.module.named_parameters(), *self.module.named_buffers())}
        own = {name: t.to(s.dtype) if t.is_floating_point() else t for name, t in own.items()}

        def pulled_back(p: Tensor, x: Tensor, s: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(self.module, {**own, role: p}, (x,))
            return (y * s).sum()

        gradient: Tensor = torch.func.vmap(torch.func.grad(pulled_back), (None, 0, 0))(own[role], x, s)
        return gradient

    def scratch(self, x: Tensor) -> int:
        return 2 * x[0].numel()


def _has_units(x: Tensor, own: int, units: int) -> bool:
    """Whether the first dimension of ``x`` can hold units, ``own`` dimensions at the end belonging to each position."""
    return units == 1 or (x.dim() > own and x.shape[0] % units == 0)


def formula_of(module: nn.Module) -> Formula | None:
    """The formula of a module; None: another kind, or a subclass that computes something else."""
    layer = layer_of(module)
    if isinstance(layer, LinearLayer):
        return _Linear(layer)
    if isinstance(layer, ConvLayer):
        return _Conv(layer)
    if isinstance(layer, EmbeddingLayer):
        return _Embedding(layer)
    forward = type(module).forward
    if isinstance(module, nn.LayerNorm) and forward is nn.LayerNorm.forward:
        shape = list(module.normalized_shape)
        return _Norm(partial(functional.layer_norm, normalized_shape=shape, eps=module.eps), len(shape), last=True)
    if isinstance(module, nn.RMSNorm) and forward is nn.RMSNorm.forward:
        shape = list(module.normalized_shape)
        return _Norm(partial(functional.rms_norm, normalized_shape=shape, eps=module.eps), len(shape), last=True)
    if isinstance(module, nn.GroupNorm) and forward is nn.GroupNorm.forward:
        return _Norm(partial(functional.group_norm, num_groups=module.num_groups, eps=module.eps), 1, last=False)
    batch_norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    if isinstance(module, batch_norms) and forward is nn.modules.batchnorm._BatchNorm.forward:
        return _Norm(partial(_with_running_statistics, module), 1, last=False)
    return None


def leaf_formula(module: nn.Module) -> Formula | None:
    """Per-unit autograd through a module of any kind; None: it has children, which may do anything with it."""
    return None if any(True for _ in module.children()) else _Leaf(module)


def _with_running_statistics(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor) -> Tensor:
    return functional.batch_norm(x, module.running_mean, module.running_var, training=False, eps=module.eps)
