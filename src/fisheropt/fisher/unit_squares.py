"""Sums over units of squared gradients, for every parameter of a model, by the shortest way that is right for it.

Three ways, and a parameter takes the first that explains *all* of its influence on the outputs:

1. a formula for the layers it belongs to (`fisheropt.fisher.per_unit`);
2. autograd per unit through its own module alone, if that has no children and draws no random numbers;
3. autograd per unit through the whole model.

What explains a parameter is read off the graph of each pass: a way through the graph that avoids the recorded calls of
its layers (a weight used again by a function, a layer inside something else) sends it to the third. Whether the first
dimension of what a layer sees is that of the units is found out, once per layer, by a gradient that concerns every
other unit only: a layer that sees time first, or one table for all units, shows in the units between, and is sent on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisheropt.fisher.batches import per_example
from fisheropt.fisher.models import call, check_outputs, outputs_with, trainable
from fisheropt.fisher.per_unit import Formula, chunk_of, formula_of, leaf_formula
from fisheropt.fisher.recording import Call, Recording, reached

__all__ = ["UnitSquares"]

_WHOLE_BUDGET = 1 << 24  # numbers of per-unit gradients at a time on the third way
_FEW = 16  # units at a time up to which a call of torch for each is nothing beside its numbers


class _Use(NamedTuple):
    """A parameter in one call: which call, its formula, and the parameter's name in the module."""

    call: int
    formula: Formula
    role: str


class UnitSquares:
    """For one model. `forward` a batch, then ask for `of` as many gradients of its outputs as needed.

    Attributes:
        parameters: name -> trainable parameter, tied ones once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trainable(model)
        self._model = model
        self._owned = {  # module -> its own trainable parameters, by their names in it
            module: own
            for module in model.modules()
            if (own := {role: p for role, p in module._parameters.items() if p is not None and p.requires_grad})
        }
        self._formulas = {module: found for module in self._owned if (found := formula_of(module)) is not None}
        self._leaves = {
            module: found
            for module in self._owned
            if module not in self._formulas and (found := leaf_formula(module)) is not None
        }
        self._has_units: dict[nn.Module, bool] = {}  # what the test of the layers said
        self._vmap = True

    def forward(self, inputs: Any, size: int) -> Tensor:
        """The outputs for a batch of ``size`` units, (size, ...)."""
        self._inputs, self._size = inputs, size
        before = self._random_state()
        with Recording([*self._formulas, *self._leaves]) as recording:
            outputs = call(self._model, inputs)
        self._random = any(not torch.equal(a, b) for a, b in zip(before, self._random_state(), strict=True))
        check_outputs(outputs, size)
        self._outputs = outputs
        self._calls = [c for c in recording.calls if self._formula(c) is not None]
        if size > 1 and any(c.module not in self._has_units for c in self._calls):
            self._test_layers()
        if size > 1:
            self._calls = [c for c in self._calls if self._has_units[c.module]]
        self._uses, self._whole = self._ways()
        return outputs

    def of(self, pull: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, sum over units of the squared gradients of ``(pull * outputs).sum()``), in at least float32."""
        s = self._gradients(pull)
        for name, uses in self._uses.items():
            p = self.parameters[name]
            dtype = torch.promote_types(p.dtype, torch.float32)
            split = []
            for use in uses:
                of_output = s[use.call]
                if of_output is not None:
                    x = self._calls[use.call].input.detach()
                    x = x.to(dtype) if x.is_floating_point() else x
                    parts = use.formula.by_unit(x, of_output.to(dtype), self._size)
                    assert parts is not None, "a call whose units were not tested"
                    split.append((use, *parts))
            if split:
                yield name, _sum_of_squares(split, p, self._size)
        if self._whole:
            yield from self._through_the_model(pull)

    # -- which way ----------------------------------------------------------------------------------------------------

    def _formula(self, c: Call) -> Formula | None:
        """How a call explains the parameters of its module, which must be those it had at the start."""
        own = self._owned[c.module]
        if any(c.module._parameters.get(role) is not p for role, p in own.items()):
            return None
        if c.module in self._formulas:
            fits = set(own) <= {"weight", "bias"} and "weight" in c.module._parameters
            return self._formulas[c.module] if fits else None
        return None if self._random else self._leaves[c.module]

    def _test_layers(self) -> None:
        """Find out of which layers the first dimension is that of the units."""
        pattern = torch.arange(self._outputs.numel(), device=self._outputs.device).view_as(self._outputs)
        pull = (pattern % 7 + 1).to(self._outputs.dtype)
        pull[1::2] = 0
        for c, s in zip(self._calls, self._gradients(pull), strict=True):
            formula = self._formula(c)
            if formula is None or s is None:
                continue
            parts = formula.by_unit(c.input.detach(), s, self._size)
            good = parts is not None and not bool(parts[1][1::2].any())
            self._has_units[c.module] = good and self._has_units.get(c.module, True)
        for c in self._calls:
            self._has_units.setdefault(c.module, False)

    def _ways(self) -> tuple[dict[str, list[_Use]], list[str]]:
        """The calls that explain each parameter, and the names of the parameters that need the whole model."""
        uses: dict[str, list[_Use]] = {}
        names = {p: name for name, p in self.parameters.items()}
        for i, c in enumerate(self._calls):
            formula = self._formula(c)
            assert formula is not None
            for role, p in self._owned[c.module].items():
                uses.setdefault(names[p], []).append(_Use(i, formula, role))
        layers = [c for c in self._calls if c.module in self._formulas]
        unexplained = reached(self._outputs, layers)
        whole = []
        for name, p in self.parameters.items():
            if p not in unexplained:
                continue
            own = [self._calls[use.call] for use in uses.get(name, [])]
            if len(own) == 0 or p in reached(self._outputs, [*layers, *own]):
                whole.append(name)
                uses.pop(name, None)
        return uses, whole

    def _gradients(self, pull: Tensor) -> list[Tensor | None]:
        """With respect to the output of every call."""
        if not self._calls:
            return []
        edges = [c.edge for c in self._calls]
        return list(torch.autograd.grad(self._outputs, edges, pull, retain_graph=True, allow_unused=True))

    def _random_state(self) -> list[Tensor]:
        devices = {p.device for p in self.parameters.values() if p.device.type == "cuda"}
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]

    # -- the third way ------------------------------------------------------------------------------------------------

    def _through_the_model(self, pull: Tensor) -> Iterator[tuple[str, Tensor]]:
        whole = {name: self.parameters[name].detach() for name in self._whole}
        totals = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in whole.items()
        }
        chunk = max(1, _WHOLE_BUDGET // sum(p.numel() for p in whole.values())) if self._can_vmap() else 1
        for start in range(0, self._size, chunk):
            for name, g in self._unit_gradients(whole, pull, start, min(self._size, start + chunk)).items():
                totals[name] += g.to(totals[name].dtype).square_().sum(0)
        yield from totals.items()

    def _can_vmap(self) -> bool:
        return self._vmap and not self._random

    def _unit_gradients(self, whole: dict[str, Tensor], pull: Tensor, start: int, stop: int) -> dict[str, Tensor]:
        """(stop - start, *shape) for each name: all at once if torch can do that with this model, else one by one."""
        rows: list[Tensor] = []

        def collect(x: Tensor) -> Tensor:
            rows.append(x[start:stop])
            return x

        per_example(self._inputs, self._size, collect)

        def pulled_back(whole: dict[str, Tensor], rows: list[Tensor], pull: Tensor) -> Tensor:
            remaining = iter(rows)
            inputs = per_example(self._inputs, self._size, lambda x: next(remaining).unsqueeze(0))
            return (outputs_with(self._model, whole, inputs).squeeze(0) * pull).sum()

        if self._can_vmap():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of operations that torch does one by one
                    found: dict[str, Tensor] = torch.func.vmap(torch.func.grad(pulled_back), (None, 0, 0))(
                        whole, rows, pull[start:stop]
                    )
                return found
            except (RuntimeError, ValueError, TypeError, NotImplementedError):
                self._vmap = False  # the loop will say what is wrong if it is not vmap
        units = [
            torch.func.grad(pulled_back)(whole, [x[i] for x in rows], pull[start + i]) for i in range(stop - start)
        ]
        return {name: torch.stack([unit[name] for unit in units]) for name in whole}


def _sum_of_squares(split: list[tuple[_Use, Tensor, Tensor]], p: Tensor, size: int) -> Tensor:
    """Of the gradients of each unit, which are the sums over the uses of the parameter."""
    if len(split) == 1:
        use, x, s = split[0]
        short = use.formula.squares(use.role, x, s)
        if short is not None:
            return short
    total = torch.zeros(p.shape, dtype=split[0][2].dtype, device=p.device)
    chunk = chunk_of(max(p.numel(), *(use.formula.scratch(x) for use, x, _ in split), 0), p.device)
    for start in range(0, size, chunk):
        units = slice(start, start + chunk)
        g = None
        for use, x, s in split:
            of_use = use.formula.gradient(use.role, x[units], s[units])
            g = of_use if g is None else g.add_(of_use)
        assert g is not None
        if chunk <= _FEW:
            for of_unit in g:  # one way through memory, where a square and a sum are two
                total.addcmul_(of_unit, of_unit)
        else:
            total += g.square_().sum(0)
    return total
