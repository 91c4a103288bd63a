"""The squared gradient of a whole batch: the square of a sum, which is not the sum of squares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fisheropt.fisher.models import check_outputs, outputs_with, stand_ins, trainable

__all__ = ["BatchSquare"]


class BatchSquare:
    """With the methods of `fisheropt.fisher.unit_squares.UnitSquares`.

    The model runs with stand-ins for its parameters, so that hooks on their gradients stay out of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trainable(model)
        self._model = model

    def forward(self, inputs: Any, size: int) -> Tensor:
        """The outputs for a batch of ``size`` units, (size, ...)."""
        self._stand_ins = stand_ins(self._model)
        self._outputs = outputs_with(self._model, self._stand_ins, inputs)
        check_outputs(self._outputs, size)
        return self._outputs

    def of(self, pull: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, squared gradient of ``(pull * outputs).sum()``), in at least float32."""
        gradients = torch.autograd.grad(self._outputs, list(self._stand_ins.values()), pull, allow_unused=True)
        for (name, p), g in zip(self._stand_ins.items(), gradients, strict=True):
            if g is not None:
                yield name, g.to(torch.promote_types(p.dtype, torch.float32)).square()
