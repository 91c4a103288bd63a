"""Sums over everything a layer saw: several calls, micro-batches, and the processes of a data-parallel group.

What makes them comparable (SPEC D16): s is the gradient of *the loss of the step*. A mean over B units puts 1/B into
each s. With k micro-batches, the loss of each is divided by k, as for any optimizer whose step is to be that of one
large batch, and its s carry 1/(k B/k) = 1/B again. DDP and FSDP2 average gradients over R processes, so the
loss of the step is the mean of theirs and s/R its gradient. A loss scale is divided out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fisheropt.fisher.factors import Layer

__all__ = ["Contribution", "FactorSums"]


class Contribution(NamedTuple):
    """Of one call, or of many.

    Attributes:
        H: sum of h^2, (inputs,) without the 1 of a bias, float64.
        S: sum of s^2, (outputs,), float64.
        units: over how many units and positions, >= 0.
    """

    H: Tensor
    S: Tensor
    units: int


class FactorSums:
    """A `Receiver` that adds up the factors of layers in training mode.

    Args:
        layers: name -> (module, layer), in the same order on every process.
        process_groups: those over which data is parallel, which together are all processes that share a step: one, two
            where shards are copied (HSDP), or none: this process is alone.

    Attributes:
        due: whether calls are counted at all.
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Module, Layer]], process_groups: Sequence[Any] = ()) -> None:
        self.due = True
        self._layers = dict(layers)
        self._names = {module: name for name, (module, _) in layers.items()}
        self._process_groups = tuple(process_groups)
        self._sums: dict[str, Contribution] = {}

    def wants(self, module: nn.Module) -> bool:
        if not (self.due and module.training):
            return False
        if not self._process_groups and getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
            raise RuntimeError(
                "the model runs inside DistributedDataParallel, but the optimizer was given the bare model and would "
                "let the processes drift apart; wrap the model first and give the wrapped one to the optimizer"
            )
        return True

    def remember(self, module: nn.Module, x: Tensor) -> Tensor:
        return self._layers[self._names[module]][1].input_squares(x)

    def contribution(self, module: nn.Module, remembered: Tensor, s: Tensor) -> Contribution:
        return Contribution(remembered, *self._layers[self._names[module]][1].output_squares(s))

    def add(self, module: nn.Module, contribution: Contribution) -> None:
        name = self._names[module]
        if name in self._sums:
            H, S, units = self._sums[name]
            contribution = Contribution(H + contribution.H, S + contribution.S, units + contribution.units)
        self._sums[name] = contribution

    def clear(self) -> None:
        """Forget what was added."""
        self._sums.clear()

    def means(self, loss_scale: float | Tensor = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """Hhat, (inputs [+1],), and Shat, (outputs,), of each layer that was seen anywhere; then forget them.

        With process groups this is a collective call, one all-reduce in each for all layers together.

        Args:
            loss_scale: by which the loss was multiplied before ``backward``, > 0.
        """
        sums, self._sums = self._sums, {}
        processes = math.prod(torch.distributed.get_world_size(group) for group in self._process_groups)
        if self._process_groups:
            sums = self._over_processes(sums)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (H, S, units) in sums.items():
            if units == 0:
                continue
            H = H / units
            if self._layers[name][1].bias:
                H = torch.cat([H, H.new_ones(1)])
            found[name] = H, S / units / (processes * loss_scale) ** 2
        return found

    def _over_processes(self, sums: Mapping[str, Contribution]) -> dict[str, Contribution]:
        """The sums of all processes. Every one takes part with all layers, seen or not: their order is the message."""
        device = next(p.device for module, _ in self._layers.values() for p in module.parameters())
        all_sums = {name: sums.get(name) or self._nothing(name) for name in self._layers}
        parts = [torch.tensor([c.units for c in all_sums.values()])]
        parts += [part for c in all_sums.values() for part in (c.H, c.S)]
        message = torch.cat([part.to(device, torch.float64) for part in parts])
        for group in self._process_groups:
            torch.distributed.all_reduce(message, group=group)
        units, *received = torch.split(message, [part.numel() for part in parts])
        return {
            name: Contribution(H.to(c.H.device), S.to(c.S.device), int(count))
            for (name, c), H, S, count in zip(
                all_sums.items(), received[::2], received[1::2], units.tolist(), strict=True
            )
        }

    def _nothing(self, name: str) -> Contribution:
        module, layer = self._layers[name]
        H = torch.zeros(layer.inputs, dtype=torch.float64, device=next(module.parameters()).device)
        return Contribution(H, H.new_zeros(layer.outputs), 0)
