"""CurvatureOptimizer: a `RuleOptimizer` whose rule also reads the curvature of the model's layers.

It watches a model through `fisheropt.fisher`, takes what it saw into the factors once per step, gives them to the rule
as two more arguments, and carries them through checkpoints and copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parallel import DistributedDataParallel

from fisheropt._checkpoint import ordered_by_name
from fisheropt._loss_scale import overflowed, unscale
from fisheropt._optimizer import ParamsT, RuleOptimizer, Work
from fisheropt._state import Options, working_dtype
from fisheropt._watchable import unwrapped
from fisheropt.fisher.curvature import Curvature, CurvatureSummary

__all__ = ["CurvatureOptimizer"]

_OF_LAYERS = ("gammas", "update_every", "normalize")
"""Options that a layer has, whose weight and bias may be in different groups: they are the same in all groups."""


class CurvatureOptimizer(RuleOptimizer):
    """Runs a rule that takes rows and columns of F after its slots. Abstract: see `RuleOptimizer`.

    Every group has the options gammas, update_every, normalize and damping.

    Attributes:
        model: what it watches.
        loss_scale: by which the loss is multiplied before ``backward``, or a function that says so, or None.
    """

    # torch.amp.GradScaler then leaves the gradients to us and says its scale, which the captured s carry
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        params: ParamsT | None,
        defaults: dict[str, Any],
        loss_scale: float | Callable[[], float] | None,
    ) -> None:
        self.model = model
        self.loss_scale = loss_scale
        self._names = self._names_now()
        super().__init__(list(self._names) if params is None else params, defaults)
        self._curvature = self._watched()  # last: nothing is left on the model if an argument was refused

    def _names_now(self) -> dict[Tensor, str]:
        return {p: name for name, p in unwrapped(self.model, type(self).__name__)[0].named_parameters()}

    def _watched(self) -> Curvature:
        return Curvature(*unwrapped(self.model, type(self).__name__))

    def _watch_anew(self) -> None:
        """Watch the layers that the model has today, and go on from what is known."""
        known = self._curvature.factors
        self._curvature.close()
        self._curvature = self._watched()
        self._curvature.adopt(known)
        self._watch()

    # -- groups -------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters of the model; between two steps, if the model has been given them since.

        Raises:
            ValueError: as ever, and: a parameter is not the model's, or an option that belongs to layers (gammas,
                update_every, normalize) is another than in the other groups.
        """
        before = self._names
        named = {"params": self._named(param_group["params"]), "param_names": []}  # also where a group is empty
        super().add_param_group({**param_group, **named})
        try:
            for option in _OF_LAYERS:
                self._common(option)
        except ValueError:
            del self.param_groups[-1]
            raise
        if self._names is not before and hasattr(self, "_curvature"):
            self._watch_anew()

    def _named(self, params: Any) -> Any:
        """The parameters with their names in the model. What is no list of parameters is left for torch to refuse."""
        if isinstance(params, set) or not isinstance(params, Iterable):
            return params
        listed = [params] if isinstance(params, Tensor) else list(params)
        tensors = [x[1] if isinstance(x, tuple) else x for x in listed]
        if not all(isinstance(p, Tensor) for p in tensors):
            return listed
        if not all(p in self._names for p in tensors):
            self._names = {**self._names, **self._names_now()}
        for p in tensors:
            if p not in self._names:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is not one of the model's: params= takes parameters of the "
                    "model that the optimizer was given, because their factors come from its layers"
                )
            if nn.parameter.is_lazy(p):
                raise ValueError(
                    f"{self._names[p]} has no shape yet; call the model once, then build {type(self).__name__}"
                )
        return [(self._names[p], p) for p in tensors]

    def _common(self, option: str) -> Any:
        first, *others = (group[option] for group in self.param_groups)
        for other in others:
            if other != first:
                raise ValueError(
                    f"{option} must be the same in all groups, got {first!r} and {other!r}: it belongs to layers, "
                    "whose weight and bias may be in different groups"
                )
        return first

    # -- the step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo  # torch.compiler.disable would import the whole compiler with this module
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the factors, if they are due, then every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss; called once, with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse. Nothing has been changed then.
            RuntimeError: the optimizer is closed; or the gradients were unscaled by a GradScaler that has not said its
                scale, or no layer of the model was seen although they have gradients, and the message says what to do.
        """
        if self._curvature.closed:
            raise RuntimeError(f"this {type(self).__name__} is closed: without hooks its factors would be stale")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if overflowed(self):  # what GradScaler asks of an optimizer that supports it
            self._curvature.forget()
            return loss
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if params:
            self._check_gradients(params)
            self._update_curvature(self._unscale(params))
            super().step()
            self._record()["steps"] += 1
            self._watch()
        return loss

    def _unscale(self, params: list[Tensor]) -> float | Tensor:
        """Divide gradients by the scale that GradScaler left to us, as it would have.

        Returns:
            What the loss was multiplied by before ``backward``, and the captured gradients with it.
        """
        return unscale(self, params, self.loss_scale, needed=self._is_due())

    def _update_curvature(self, loss_scale: float | Tensor) -> None:
        """Take in what was seen since the last step, if that is due."""
        gammas, normalize, due = self._common("gammas"), self._common("normalize"), self._is_due()
        if due:
            self._curvature.update_layers(gammas, normalize, loss_scale)
            self._complain_if_blind()
        gradients = [
            (p, p.grad, working_dtype(p.dtype, group["state_dtype"]))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        self._curvature.update_parameters(gradients, due, gammas, normalize)

    def _complain_if_blind(self) -> None:
        if self._curvature.knows_a_layer():
            return
        unseen = [
            name
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
            for name in self._curvature.unseen(p)
        ]
        if unseen:
            raise RuntimeError(
                f"{unseen[0]} has a gradient, but no call of any layer was seen before it. Was the optimizer built "
                "after the forward pass, or after torch.compile had traced the model (build it first, then compile)? "
                "Were gradients set by hand, or is the model called through torch.func?"
            )

    def _prepare(self, p: Tensor, group: Options) -> Work:
        work = super()._prepare(p, group)
        precision = working_dtype(work.p.dtype, None)  # a kernel takes parameters as they are; F is never in bfloat16
        rows, columns = self._curvature.metric(p, group["normalize"], precision)  # type: ignore[arg-type]
        return work._replace(slots=[*work.slots, rows, columns])

    def step_tensor(self, p: Tensor, group: dict[str, Any]) -> None:
        """Refused: `fisheropt.step_in_backward` steps a tensor before the factors of other layers are known.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} cannot step inside backward: its factors are updated once per step, from all "
            "layers; call step() after backward"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and forget the factors of the passes that they came from."""
        super().zero_grad(set_to_none)
        self._curvature.forget()

    def _record(self) -> dict[str, Any]:
        """What is in the state beside the parameters': how many steps there were, and the factors by name."""
        if "fisher" not in self.state:
            self.state["fisher"] = {"steps": 0, "factors": self._curvature.factors}  # type: ignore[index]
        record: dict[str, Any] = self.state["fisher"]  # type: ignore[index]
        return record

    def _is_due(self) -> bool:
        steps = self._record()["steps"] if "fisher" in self.state else 0
        return bool(steps % self._common("update_every") == 0)

    def _watch(self) -> None:
        self._curvature.watch(self._is_due())

    # -- looking, copying, ending -------------------------------------------------------------------------------------

    def curvature_summary(self) -> dict[str, CurvatureSummary]:
        """How much F differs from its damping: parameter name -> kind, min, median, max, near_damping.

        ``near_damping`` is the fraction of a parameter's F that is within 10 % of lambda. Where it is close to 1, what
        runs is momentum SGD with learning rate eta/lambda. Parameters that have not been stepped yet are left out.
        Forms every F, one after the other: a diagnostic, not for every step.
        """
        found = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    continue
                summary = self._curvature.summary(p, group["normalize"], group["damping"])
                if summary is not None:
                    found[self._names[p]] = summary
        return found

    def close(self) -> None:
        """Remove all hooks from the model. The optimizer can still be read and saved, but takes no more steps.

        The end of the last reference to the optimizer does the same.
        """
        self._curvature.close()

    def _checked(self, saved: dict[str, Any]) -> dict[str, Any]:
        saved = ordered_by_name(saved, self.param_groups, type(self).__name__)
        record = saved["state"].get("fisher")
        copy = None
        if record is not None:
            copy = {"steps": int(record["steps"]), "factors": self._curvature.checked(record["factors"])}
        checked = super()._checked(saved)
        if copy is not None:
            checked["state"]["fisher"] = copy
        return checked

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.model, DistributedDataParallel):
            raise TypeError(
                f"{type(self).__name__} of a DistributedDataParallel model cannot be copied or pickled, because the "
                "model cannot; build another one and load this one's state_dict()"
            )
        return {
            **super().__getstate__(),
            "model": self.model,
            "loss_scale": self.loss_scale,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model" in state:  # a copy, with a model of its own; loading a state_dict comes here without one
            self._names = self._names_now()
            self._curvature = self._watched()
        record = self.state.get("fisher")  # type: ignore[call-overload]
        self._curvature.adopt({} if record is None else record["factors"])
        self._watch()
