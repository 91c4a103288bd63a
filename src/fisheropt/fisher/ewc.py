"""Elastic weight consolidation: learn a new task where the old ones do not mind.

Sources: Kirkpatrick et al. 2017, arXiv:1612.00796, Equation 3 (offline); Schwarz et al. 2018, *Progress & Compress*,
arXiv:1805.06370, Section 3.2 (online). After task k, with parameters theta_k and Fisher diagonal F_k::

    penalty = strength/2 sum over tasks and parameters of F_k (theta - theta_k)^2             offline
    penalty = strength/2 sum over parameters of P (theta - theta_K)^2,  P = gamma P + F_K      online

A sum of quadratics is a quadratic, so that offline takes two tensors per parameter too, however many the tasks::

    P' = P + F_k ;  a' = (P a + F_k theta_k)/P' ;  c' = c + sum P F_k/P' (a - theta_k)^2
    penalty = strength/2 (sum P (theta - a)^2 + c)

The penalty is no log-likelihood of the data, so its gradient has no business in an optimizer's f (arXiv:2405.12807,
Section 3.4.3). It is the negative logarithm of a Gaussian prior, as weight decay is, and `EWC.apply_grads_` treats it
as Algorithm 1 treats weight decay, after the step and in the step's own metric d = f^rho + eps^(2 rho)::

    theta  = theta - eta strength P (theta - a)/d

with theta on the right being the theta on the left: an implicit step, which a quadratic allows in closed form::

    w      = eta strength P/(d + eta strength P)                          in [0, 1)
    theta  = theta + w (a - theta)

It needs no clip, because it cannot overshoot a, however large the strength. Neither f, nor m, nor the clips see the
penalty; and because loss and penalty are divided by the same d, where both balance is where their sum is stationary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt._math import outer_fisher
from fisheropt._state import Slot, factored_dims
from fisheropt._storage import storage_of

__all__ = ["EWC"]

Mode = Literal["offline", "online"]


class EWC:
    r"""Elastic weight consolidation: a quadratic penalty that holds a model where its Fisher information is large.

    Two ways to use it; choose one:

    * ``(loss + ewc.penalty()).backward()``: the penalty takes part in everything, also in the optimizer's f.
    * ``optimizer.step(); ewc.apply_grads_(optimizer)``: the optimizer sees the loss alone. So that no step is missed:
      ``optimizer.register_step_post_hook(lambda optimizer, *_: ewc.apply_grads_(optimizer))``.

    Args:
        model: whose parameters are held. Its parameters now are those of the first task.
        fisher: name of a parameter -> F, (a `FisherDiagonal` or any mapping), per unit of data; None if there was no
            task yet. Parameters without an entry are not held. F of another scale is another strength: of f taken out
            of an optimizer without the batch size, by about that.
        strength: of the penalty relative to the loss, >= 0. With a loss per unit and F per unit, about the number of
            units of the old tasks over those of the new one is what Bayes' rule asks for.
        mode: ``"offline"`` holds to every task's own parameters, ``"online"`` to the newest.
        gamma: online: what an older task's F still counts when a new one comes, in [0, 1].

    Raises:
        ValueError: F names a parameter the model does not have, has another shape, or a negative or non-finite entry;
            an option is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        fisher: Mapping[str, Tensor] | None,
        strength: float,
        mode: Mode = "offline",
        *,
        gamma: float = 1.0,
    ) -> None:
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength must be a finite number >= 0, got {strength!r}")
        if mode not in ("offline", "online"):
            raise ValueError(f"mode must be 'offline' or 'online', got {mode!r}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
        if mode == "offline" and gamma != 1:
            raise ValueError(f"gamma belongs to mode='online', got {gamma!r}; offline counts every task in full")
        self.strength = strength
        self.mode: Mode = mode
        self.gamma = gamma
        self.tasks = 0
        self._model = model
        self._constant = 0.0
        self._precision: dict[str, Tensor] = {}  # P
        self._anchor: dict[str, Tensor] = {}  # a
        if fisher is not None:
            self.consolidate(fisher)

    @torch.no_grad()
    def consolidate(self, fisher: Mapping[str, Tensor]) -> None:
        """A task is learned: hold its parameters, which are those of the model now, by its F.

        Raises:
            ValueError: as in the constructor; then nothing has changed.
        """
        params = dict(self._model.named_parameters())
        new = {name: _checked(name, F, params) for name, F in fisher.items()}
        if self.mode == "online":
            for name, P in self._precision.items():
                P.mul_(self.gamma)
                self._anchor[name].copy_(params[name])
        for name, F in new.items():
            theta = params[name].to(F.dtype)
            if name not in self._precision:
                self._precision[name], self._anchor[name] = F.clone(), theta.clone()
                continue
            P, a = self._precision[name], self._anchor[name].to(F.device)
            total = P.to(F.device) + F
            share = torch.where(total > 0, F / total, 1.0)  # of the new task
            self._constant += ((total - F) * share * (a - theta).square()).sum().item()
            self._anchor[name] = torch.lerp(a, theta, share)
            self._precision[name] = total
        self.tasks += 1

    def penalty(self) -> Tensor:
        """The penalty at the model's parameters, a scalar in nats per unit, differentiable."""
        params = dict(self._model.named_parameters())
        quadratic = torch.zeros((), device=next((p.device for p in params.values()), None))
        for name, P in self._precision.items():
            theta = params[name]
            P, a = P.to(theta.device), self._anchor[name].to(theta.device)
            quadratic = quadratic + (P * (theta.to(P.dtype) - a).square()).sum()
        return 0.5 * self.strength * (quadratic + self._constant)

    @torch.no_grad()
    def apply_grads_(self, optimizer: Optimizer) -> None:
        """Move the parameters by the penalty alone, after ``optimizer.step()``: see the module's docstring.

        The metric d is that of the optimizer's own step: f^rho + eps^(2 rho) of FAdam and FAdafactor, sqrt of the
        corrected second moment plus eps of Adam and AdamW, 1 of SGD. Parameters that the optimizer has
        not stepped yet stay.

        Raises:
            TypeError: the optimizer keeps squares in a form that is not known here.
        """
        names = {p: name for name, p in self._model.named_parameters()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = names.get(p)
                if name not in self._precision:
                    continue
                d = _metric(optimizer, p, group)
                if d is None:
                    continue
                P, a = self._precision[name].to(p.device), self._anchor[name].to(p.device)
                pull = group["lr"] * self.strength * P
                w = torch.where(pull > 0, pull / (d + pull), 0.0)
                p.copy_(torch.lerp(p.to(P.dtype), a, w))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model, to be saved beside it."""
        return {
            "strength": self.strength,
            "mode": self.mode,
            "gamma": self.gamma,
            "tasks": self.tasks,
            "constant": self._constant,
            "precision": dict(self._precision),
            "anchor": dict(self._anchor),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, options included, sharing no memory with it.

        Raises:
            ValueError: it is of another model: a name or a shape differs. Then nothing has changed.
        """
        params = dict(self._model.named_parameters())
        precision = {name: _checked(name, P, params).clone() for name, P in state_dict["precision"].items()}
        anchor = {}
        for name, P in precision.items():
            a = state_dict["anchor"][name]
            if a.shape != P.shape:
                raise ValueError(f"the anchor of {name!r} has shape {tuple(a.shape)}, its F {tuple(P.shape)}")
            anchor[name] = a.detach().to(P).clone()
        self.strength, self.mode, self.gamma = (state_dict[key] for key in ("strength", "mode", "gamma"))
        self.tasks, self._constant = state_dict["tasks"], state_dict["constant"]
        self._precision, self._anchor = precision, anchor


def _checked(name: str, F: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """F on the parameter's device, in float32 or wider."""
    if name not in params:
        raise ValueError(
            f"fisher has {name!r}, which is no parameter of the model; its names are those of named_parameters"
        )
    p = params[name]
    if F.shape != p.shape:
        raise ValueError(f"fisher[{name!r}] has shape {tuple(F.shape)}, the parameter {tuple(p.shape)}")
    F = F.detach().to(p.device, torch.promote_types(torch.promote_types(F.dtype, p.dtype), torch.float32))
    if not bool((F.isfinite() & (F >= 0)).all()):
        raise ValueError(f"fisher[{name!r}] must be finite and >= 0")
    return F


def _metric(optimizer: Optimizer, p: Tensor, group: Mapping[str, Any]) -> Tensor | float | None:
    """What the optimizer's step divides the gradient of ``p`` by; None if it has not stepped ``p`` yet."""
    state = optimizer.state.get(p, {})
    if "rho" in group:  # FAdam and FAdafactor
        if not state:
            return None
        f = _f(state, p, group)
        return f.pow(group["rho"]).add_(group["eps"] ** (2 * group["rho"]))
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        if not state:
            return None
        step = torch.as_tensor(state["step"], dtype=torch.float64)
        v: Tensor = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        root: Tensor = (v / (1 - group["betas"][1] ** step).to(v)).sqrt_()
        return root.add_(group["eps"])
    if isinstance(optimizer, torch.optim.SGD):
        return 1.0
    raise TypeError(
        f"apply_grads_ does not know how {type(optimizer).__name__} divides the gradient of a parameter of shape "
        f"{tuple(p.shape)}; use FAdam, FAdafactor, Adam, AdamW or SGD, or add penalty() to the loss"
    )


def _f(state: dict[str, Any], p: Tensor, group: Mapping[str, Any]) -> Tensor:
    """FAdam's f, or line 9 of FAdafactor, in working precision and in the shape of ``p``."""
    if "f" in state:
        slot = Slot("f", "", init=1.0)
        return storage_of(slot, p, group).read(slot, state)
    dims = factored_dims(p.shape, group["min_dim_size_to_factor"])
    assert dims is not None, "row and column sums are kept of matrices only"
    R = Slot("R", "", summed_over="columns").view(state["R"], dims)
    C = Slot("C", "", summed_over="rows").view(state["C"], dims)
    return outer_fisher(R, C).movedim((-2, -1), dims)
