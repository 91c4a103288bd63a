"""What a model of any size would need, without making one: everything is counted on torch's meta device.

Parameters and the state of an optimizer are counted exactly: the optimizer takes a step on tensors that have shapes
and no numbers. Activations are an estimate: the tensors that the forward pass of one batch keeps for the backward
pass, each storage once, parameters left out. What the backward pass needs besides, and what an allocator wastes,
comes on top; a fused attention kernel keeps less than is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fisheropt_lab.optimizers import CONTENDERS, contender, state_bytes
from fisheropt_lab.tasks import Outline


@dataclass(frozen=True)
class Footprint:
    """Sizes of one model and batch."""

    parameters: int
    weight_bytes: int  # as many again for the gradients
    activation_bytes: int
    state_bytes: dict[str, int | None]  # by optimizer; None where it cannot be counted on the meta device


def footprint(outline: Outline) -> Footprint:
    """Count everything about a model."""
    parameters = list(outline.model.parameters())
    activations = _kept_for_backward(outline)
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        activation_bytes=activations,
        state_bytes={name: state_of(outline, name) for name in CONTENDERS},
    )


def state_of(outline: Outline, name: str) -> int | None:
    """Bytes of state an optimizer has after a step of this model; None where it refuses tensors without numbers."""
    _bincount_without_numbers()
    kind = contender(name)
    model, optimizer = outline.model, None
    model.zero_grad()
    try:
        optimizer = kind.build(model, kind.lr, "eager", _without_kernels(kind.options))
        if kind.watches:
            outline.loss(model).backward()  # type: ignore[no-untyped-call]
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
    except (RuntimeError, NotImplementedError, ValueError):
        # torch's optimizers allocate their state for all parameters before they look at a number
        if optimizer is None or len(optimizer.state) < len(list(model.parameters())):
            return None
    finally:
        model.zero_grad()
    return state_bytes(optimizer)


@cache
def _bincount_without_numbers() -> torch.library.Library:
    """Teach the meta device to count tokens, which AdaFisher does for an embedding: ids are below the vocabulary, so
    the counts are as many as the caller says, although in general that would depend on the numbers."""

    def counts(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
        return x.new_empty(minlength, dtype=torch.int64 if weights is None else torch.float64)

    library = torch.library.Library("aten", "IMPL")
    library.impl("bincount", counts, "Meta")
    return library


def _without_kernels(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fused kernels have no meta version; the state is the same."""
    return {"fused": False} if "fused" in options else {}


def _kept_for_backward(outline: Outline) -> int:
    parameters = {id(p.untyped_storage()) for p in outline.model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[id(x.untyped_storage())] = x  # held, so that no other storage takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = outline.loss(outline.model)
    sizes = [x.untyped_storage().nbytes() for key, x in kept.items() if key not in parameters]
    del loss
    return sum(sizes)
