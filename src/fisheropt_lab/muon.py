"""Muon as its authors mean it to be used: hidden matrices by Muon, everything else by AdamW.

`torch.optim.Muon` (torch 2.9 and later) takes matrices only. Its own documentation sends embeddings, output layers,
biases and gains to AdamW; so does this, with one learning rate for both: Muon's update is scaled to the root mean
square of AdamW's (`adjust_lr_fn="match_rms_adamw"`).
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import torch
from torch import Tensor, nn


class MuonWithAdamW:
    """Both optimizers behind the face of one: groups, state, step and checkpoints, for all parameters of a model."""

    def __init__(
        self, model: nn.Module, lr: float, *, weight_decay: float = 0.1, momentum: float = 0.95, fused: bool = True
    ) -> None:
        matrices, others = hidden_matrices(model)
        if not matrices:
            raise ValueError("the model has no hidden matrix, so there is nothing for Muon; leave muon out")
        self.muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=fused)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups + self.adamw.param_groups

    @property
    def state(self) -> ChainMap[Tensor, Any]:
        return ChainMap(self.muon.state, self.adamw.state)

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def hidden_matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices of hidden layers, all other parameters). An embedding is not hidden, nor is the layer that ends the
    model, nor whatever shares its weights with one of them."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    outer = {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)} | {id(linear[-1].weight)}
    hidden = {id(layer.weight) for layer in linear} - outer
    parameters = list(model.parameters())
    return [p for p in parameters if id(p) in hidden], [p for p in parameters if id(p) not in hidden]
