"""RuleOptimizer: everything a `torch.optim.Optimizer` owes its users, around a rule for one tensor.

This is the only loop over parameters in the library. It knows groups, closures, gradients that are missing, dtypes,
memory layouts and checkpoints; it knows nothing of any algorithm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from fisheropt._checkpoint import Loaded, checked_state_dict
from fisheropt._dtensor import element_numbers, is_dtensor, local, place_of, placed_like
from fisheropt._layout import flat, in_layout_of, is_dense, same_layout
from fisheropt._options import check_options
from fisheropt._repeat import Call, Repeat
from fisheropt._shards import Lockstep, Place
from fisheropt._state import Options, Rule, Slot, factored_dims, matrix_view, working_dtype
from fisheropt._storage import assign, parameter_as_kept, storage_of
from fisheropt.kernels import Argument, Implementation, Stored, implementation

__all__ = ["ParamsT", "RuleOptimizer", "Work", "options_given"]


def options_given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The options among a constructor's arguments, for an optimizer whose other argument is ``params``.

    ``arguments``: ``locals()`` as the first thing in ``__init__``, so that an option is named once, in the signature.
    """
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "__class__")}


class RuleOptimizer(Optimizer):
    """Runs a rule over the tensors of parameter groups. Abstract: a final class declares its options and `rule_for`.

    A rule sees tensors it can take as they are: real, of one precision, and either flat and contiguous or, if it is
    factored, batches of matrices. The loop arranges for that, and writes back what it had to convert. Every tensor
    counts its own steps.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        check_options(defaults, defaults, type(self).__name__)
        super().__init__(params, defaults)

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        """The rule for a tensor of this shape under a group's options."""
        raise NotImplementedError(f"{type(self).__name__} declares no rule")

    # -- groups -------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, at any time; options it does not name take the optimizer's defaults.

        Raises:
            ValueError: an option is unknown or out of its range, or a parameter is in a group already.
            TypeError: a parameter is no tensor, is complex, or is not dense.
        """
        groups_before = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_options(group, self.defaults, type(self).__name__)
            for p in group["params"]:
                self._check_parameter(p)
                rule = self.rule_for(p.shape, group)
                self._implementation(rule, p, group)  # a backend that is missing says so now
                for slot in rule.slots:
                    storage_of(slot, p, group)
        except Exception:
            del self.param_groups[groups_before:]
            raise

    def _check_parameter(self, p: Tensor) -> None:
        which = f"a parameter of shape {tuple(p.shape)}"
        name = type(self).__name__
        if p.is_complex():
            raise TypeError(
                f"{name} does not take complex parameters, got {which} and dtype {p.dtype}; "
                "optimize the real torch.view_as_real(parameter) instead"
            )
        if not p.is_floating_point():
            raise TypeError(f"{name} takes floating-point parameters, got {which} and dtype {p.dtype}")
        if p.layout is not torch.strided:
            raise TypeError(f"{name} takes dense parameters, got {which} and layout {p.layout}")
        if getattr(p, "_fsdp_flattened", False):  # so FSDP1 marks its own, with use_orig_params or without
            raise TypeError(
                f"{name} does not take parameters of FullyShardedDataParallel, got {which}: they are pieces of a "
                "flat vector, cut anywhere, and statistics of whole tensors cannot be formed from them; use "
                "torch.distributed.fsdp.fully_shard"
            )
        if is_dtensor(p) and any(placement.is_partial() for placement in p.placements):  # type: ignore[attr-defined]
            raise TypeError(f"{name} takes sharded or replicated DTensor parameters, got {which} with partial sums")

    def _implementation(self, rule: Rule, p: Tensor, group: Options) -> Implementation:
        return implementation(rule.function, p.device.type, group["backend"])

    def backends(self) -> dict[str, str]:
        """What runs each parameter: ``{name, or "group.index": backend}``.

        Where a kernel cannot take a tensor, the value says why: ``"eager (numba: ...)"``.
        """
        picked: dict[str, str] = {}
        for i, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                shadow = torch.empty_like(p, device="meta", requires_grad=False)  # same dtype, shape and strides
                rule = self.rule_for(p.shape, group)
                chosen = self._implementation(rule, p, group)
                if is_dtensor(p) and chosen.backend != "eager" and not rule.local:
                    picked[name] = f"eager ({chosen.backend}: sharded parameter)"
                    continue
                kept = [slot for slot in rule.slots if slot.needed(group)]
                state = {s.name: storage_of(s, shadow, group).allocate(s, shadow, group) for s in kept}
                slots = [_as_kept(s, state[s.name], shadow, group) if s in kept else None for s in rule.slots]
                reason = _declined(chosen, parameter_as_kept(shadow, group), shadow, slots, group)
                if reason is not None:
                    precision = working_dtype(p.dtype, group["state_dtype"])
                    wide = {s.name: s.allocate(shadow, group, precision) for s in kept}
                    shadow = shadow.to(precision)
                    reason = chosen.supports(shadow, shadow, [wide.get(s.name) for s in rule.slots], group)
                picked[name] = chosen.backend if reason is None else f"eager ({chosen.backend}: {reason})"
        return picked

    # -- the step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # Inside somebody's compiled training step this runs as it is; backend="compile" compiles the rule. The public
    # torch.compiler.disable would import all of torch._dynamo, a second of work, together with this module.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss; called once, with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a gradient is sparse. Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for _, params in due:
            self._check_gradients(params)
        together = Lockstep()
        for group, params in due:
            self._update(params, group, together)
        together.run()
        return loss

    @torch.no_grad()
    def step_tensor(self, p: Tensor, group: dict[str, Any]) -> None:
        """One step of the single parameter ``p`` of ``group``; without a gradient it is left alone. Runs no step hooks.

        Raises:
            TypeError: its gradient is sparse.
        """
        if p.grad is not None:
            self._check_gradients([p])
            together = Lockstep()
            self._update([p], group, together)
            together.run()

    def _check_gradients(self, params: Sequence[Tensor]) -> None:
        for p in params:
            if p.grad is not None and p.grad.layout is not torch.strided:
                raise TypeError(
                    f"{type(self).__name__} does not take sparse gradients, got layout {p.grad.layout} for a parameter "
                    f"of shape {tuple(p.shape)}; use nn.Embedding(..., sparse=False), or torch.optim.SparseAdam for it"
                )

    def _update(self, params: Sequence[Tensor], group: Options, together: Lockstep) -> None:
        """Step these parameters of one group, all with dense gradients; shards are left to `together`."""
        if not params:
            return
        repeats: dict[int, Repeat] = self.__dict__.setdefault("_repeats", {})
        before = repeats.get(id(params[0]))
        if before is not None and before.run(params, group, self.state):
            return
        repeats.pop(id(params[0]), None)
        torch._foreach_add_([self._state_of(p, group)["step"] for p in params], 1)
        batches: dict[tuple[int, int, bool], list[Work]] = defaultdict(list)
        calls: list[Call] = []
        for p in params:
            if p.numel() == 0:
                continue
            work = self._prepare(p, group)
            if work.place is None and local(p).numel() == 0:
                continue  # an empty shard, and no other process waits for it
            if work.is_plain(p, self.state[p]):
                calls.append(Call(work.rule, work.implementation))
            if work.place is None and (work.implementation.many is None or work.write_back):
                self._run([work], group)  # at once: what was converted for one tensor is freed before the next
            else:
                batches[id(work.rule), id(work.implementation), work.place is None].append(work)
        for (_, _, whole), batch in batches.items():
            if whole:
                self._run(batch, group)
            else:
                rule, tensors = batch[0].rule, zip(*(work.arguments for work in batch), strict=True)
                places = [work.place for work in batch if work.place is not None]
                after = [work.write_back for work in batch]
                together.add(rule.function, list(tensors), places, after, rule.arguments(group))
        if len(calls) == len(params):
            repeats[id(params[0])] = Repeat(params, group, calls, self.state)

    def _run(self, works: Sequence[Work], group: Options) -> None:
        """Step tensors of one rule and implementation."""
        rule, chosen = works[0].rule, works[0].implementation
        options = rule.arguments(group)
        if chosen.many is not None:
            chosen.many(*zip(*(w.arguments for w in works), strict=True), **options)
        else:
            for w in works:
                chosen.one(*w.arguments, **options)
        for w in works:
            for write in w.write_back:
                write()

    def _prepare(self, p: Tensor, group: Options) -> Work:
        """The tensors of parameter ``p`` as its rule wants them."""
        rule = self.rule_for(p.shape, group)
        chosen = self._implementation(rule, p, group)
        g = p.grad
        assert g is not None
        state = self.state[p]
        dims = factored_dims(p.shape, group["min_dim_size_to_factor"]) if rule.factored else None
        kept = [slot if slot.needed(group) else None for slot in rule.slots]
        place, numbers = None, None
        whole = p  # what decides how a slot is stored, also where this process has a shard of it only
        if is_dtensor(p):
            place = place_of(p, dims)
            numbers = None if place is None else partial(element_numbers, p)
            g = placed_like(p, g)
            p, g, state = local(p), local(g), {name: local(x) for name, x in state.items()}
            if rule.local:
                place = None
            elif place is not None:
                chosen = implementation(rule.function, p.device.type, "eager")
        slots: list[Any] = [None if slot is None else _as_kept(slot, state, whole, group) for slot in kept]
        if group["maximize"]:
            g = -g
        write_back: list[Callable[[], None]] = []
        x: Any = parameter_as_kept(p, group)
        # a kernel's noise goes by where elements are in its tensor, that of a shard by where they are in the whole
        noisy_shard = numbers is not None and any(isinstance(t, Stored) for t in (x, *slots))
        if not chosen.native or noisy_shard or _declined(chosen, x, g, slots, group) is not None:
            slots = [None if slot is None else state[slot.name] for slot in kept]
            precision = working_dtype(p.dtype, group["state_dtype"])
            x, g = p.to(precision), g.to(precision)
            for i, slot in enumerate(kept):
                if slot is not None and not (storage := storage_of(slot, whole, group)).direct:
                    slots[i] = wide = storage.read(slot, state)
                    write_back.append(partial(storage.write, slot, state, wide, group["seed"], numbers))
            if chosen.native and chosen.supports(x, g, slots, group) is not None:
                chosen = implementation(rule.function, p.device.type, "eager")

        if dims is not None:
            views = [partial(slot.view, dims=dims) for slot in rule.slots]
            seen = [None if slot is None else _viewed(slot, view) for view, slot in zip(views, slots, strict=True)]
            work_p, work_g = _viewed(x, partial(matrix_view, dims=dims)), matrix_view(g, dims)
        elif rule.shaped:
            work_p, work_g, seen = x, g, slots
        elif isinstance(x, Stored) or any(isinstance(slot, Stored) for slot in slots):
            work_p, work_g, seen = x, in_layout_of(p, g), slots
        else:
            x = x if is_dense(x) else x.contiguous()
            for i, slot in enumerate(slots):  # their layouts differ if the parameter's has changed since
                if slot is not None and not same_layout(slot, x):
                    slots[i] = moved = in_layout_of(x, slot)
                    write_back.insert(0, partial(slot.copy_, moved))
            g = in_layout_of(x, g)
            seen = slots if chosen.native else [None if slot is None else flat(slot) for slot in slots]
            work_p, work_g = (x, g) if chosen.native else (flat(x), flat(g))
        if x is not p and not isinstance(x, Stored):
            write_back.append(partial(assign, p, x, state, group, numbers))
        return Work(rule, chosen, work_p, work_g, state["step"], seen, write_back, place)

    def _state_of(self, p: Tensor, group: Options) -> dict[str, Tensor]:
        """The state of ``p``. What is missing is allocated: all at its first step, momentum when it is switched on."""
        state: dict[str, Tensor] = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.int64, device=p.device)
        for slot in self.rule_for(p.shape, group).slots:
            if slot.name not in state and slot.needed(group):
                state.update(storage_of(slot, p, group).allocate(slot, p, group))
        return state

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved: bit for bit, in its precision, sharing no memory with the argument.

        Unlike torch's own loading this does not cast state to the dtype of the parameter, so that the float32 state of
        bfloat16 weights survives, and it checks everything before it changes anything.

        Raises:
            ValueError: another number of groups or parameters, an option that is unknown or out of its range, or
                state that is not this optimizer's: other slots or shapes.
        """

        def check(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            return self._checked(saved)

        last = self.register_load_state_dict_pre_hook(check)  # after those of the user, which may replace the argument
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()

    def _checked(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What `load_state_dict` may load of ``saved``: checked, and copied."""
        return checked_state_dict(saved, self.param_groups, self.defaults, self.rule_for, type(self).__name__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "state" in state:
            slots = {p: s.slots if isinstance(s, Loaded) else s for p, s in state["state"].items()}
            state = {**state, "state": defaultdict(dict, slots)}
        super().__setstate__(state)
        self.__dict__.pop("_repeats", None)
        del self.defaults["differentiable"]  # torch adds this option of its own, and then every group would have it


def _as_kept(slot: Slot, state: dict[str, Tensor], p: Tensor, group: Options) -> Argument:
    """A slot for a kernel that may take it as it is kept."""
    return storage_of(slot, p, group).as_kept(slot, state, group["seed"])


def _tensor(x: Argument) -> Tensor:
    return x.values if isinstance(x, Stored) else x


def _viewed(x: Argument, view: Callable[[Tensor], Tensor]) -> Argument:
    return x._replace(values=view(x.values)) if isinstance(x, Stored) else view(x)


def _declined(
    chosen: Implementation, p: Argument, g: Tensor, slots: Sequence[Argument | None], group: Options
) -> str | None:
    """Why a kernel cannot take these tensors as they are kept, or None."""
    if any(isinstance(x, Stored) for x in (p, *slots)):
        if not chosen.stored:
            return "it does not round stochastically"
        weights, *others = (_tensor(x) for x in (p, *slots) if x is not None)
        if not is_dense(weights) or not all(same_layout(x, weights) for x in others if x.shape == weights.shape):
            return "its state lies in another order"
    return chosen.supports(p, g, slots, group)


class Work(NamedTuple):
    """One tensor ready for its rule. ``write_back``: to do afterwards, in this order; ``place``: if it is a shard."""

    rule: Rule
    implementation: Implementation
    p: Any
    g: Tensor
    step: Tensor
    slots: list[Argument | None]
    write_back: list[Callable[[], None]]
    place: Place | None

    def is_plain(self, p: Tensor, state: Mapping[str, Tensor]) -> bool:
        """Whether a kernel takes the tensors of ``p`` themselves, as they are kept, and many at once."""
        names = [slot.name for slot in self.rule.slots]
        if self.implementation.many is None or self.write_back or len(self.slots) != len(names):
            return False
        slots = zip(self.slots, names, strict=True)
        own = all(slot is None or _tensor(slot) is state.get(name) for slot, name in slots)
        return own and _tensor(self.p) is p and self.g is p.grad

    @property
    def arguments(self) -> tuple[Argument | None, ...]:
        return self.p, self.g, self.step, *self.slots
