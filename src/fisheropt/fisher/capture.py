"""Hooks that show what goes into the layers of a model and what gradient comes back, and an owner who removes them.

A `Capture` watches some modules of a model for a `Receiver`. Each call of a module is seen once, in its forward pass;
the gradient with respect to its output arrives, if at all, in the backward pass. Between the two only what the receiver
chose to remember is kept, never the input itself, so that checkpointing saves what it saves without a capture:

* recomputation without reentrance repeats the forward pass, but no gradient flows into the copy: nothing is seen twice;
* reentrant checkpointing runs its first forward pass without gradients, which is not seen, and its second one with.

A gradient counts when the same backward pass adds to the ``grad`` of a parameter of the module. Passes that only ask
for other gradients (adversarial inputs, gradient penalties, ``torch.autograd.grad`` for a diagnosis) do not.

The hooks keep the capture alive no more than the capture keeps the model: `Capture.close`, or the end of the last
reference to it, removes them. They read, and never write: gradients, random numbers and train/eval flags stay as they
are. A copy of the model (deepcopy, pickle) has hooks that do nothing.

Not seen: calls under ``torch.no_grad``, under transformations of `torch.func`, and of modules whose parameters have
been exchanged for others (``torch.func.functional_call``); uses of a parameter without a call of its module. A model
that `torch.compile` has already traced does not look for new hooks: capture first, compile then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.hooks import RemovableHandle

from fisheropt._dtensor import is_dtensor

__all__ = ["Capture", "Receiver"]

R = TypeVar("R")  # what is remembered of a call until its gradient arrives
C = TypeVar("C")  # what a call contributes once it has


class Receiver(Protocol[R, C]):
    """Who wants to know."""

    def wants(self, module: nn.Module) -> bool:
        """Whether a call of ``module`` that happens now is to be seen."""

    def remember(self, module: nn.Module, x: Tensor) -> R:
        """What to keep of a call with input ``x`` until its gradient arrives."""

    def contribution(self, module: nn.Module, remembered: R, s: Tensor) -> C:
        """What the call is worth, now that the gradient ``s`` with respect to its output is here."""

    def add(self, module: nn.Module, contribution: C) -> None:
        """Take a contribution: its gradient has been added to that of a parameter."""


@dataclass
class _Call(Generic[R, C]):
    """One call of a module."""

    remembered: R
    contribution: C | None = None
    backward: int = -1  # the pass in which the contribution came
    added: bool = False


class Capture(Generic[R, C]):
    """Watches modules for a receiver, until it is closed or garbage.

    Args:
        modules: name -> module, each with one tensor in, as its first argument or as ``input=``, and one tensor out.
        receiver: who is told.

    Raises:
        RuntimeError: in ``backward``: two passes through one call both add to gradients, so that its gradient is a sum
            of which only the parts were seen.
    """

    def __init__(self, modules: Mapping[str, nn.Module], receiver: Receiver[R, C]) -> None:
        self.receiver = receiver
        self._names = {module: name for name, module in modules.items()}
        self._own = {module: tuple(p for p in module._parameters.values() if p is not None) for module in self._names}
        self._open_calls: dict[nn.Module, list[_Call[R, C]]] = {module: [] for module in self._names}
        self._modules_of: dict[int, list[nn.Module]] = {}  # by id: parameters live as long as the modules we hold
        for module, own in self._own.items():
            for p in own:
                self._modules_of.setdefault(id(p), []).append(module)
        self._watched: dict[int, weakref.ref[Tensor]] = {}  # by id: tensors with a hook
        handles: list[RemovableHandle] = [
            # before hooks that others registered and that may exchange the output
            module.register_forward_hook(_ForwardHook(self), prepend=True, with_kwargs=True)
            for module in self._names
        ]
        self._handles = handles
        self._finalizer = weakref.finalize(self, _remove_all, handles)

    def close(self) -> None:
        """Remove all hooks. Closing twice is closing once."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def forget(self) -> None:
        """Drop gradients that have arrived and not been added to any parameter's."""
        for calls in self._open_calls.values():
            calls.clear()

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module has been called."""
        if self.closed or module not in self._own or not self.receiver.wants(module):
            return
        if not (isinstance(output, Tensor) and output.requires_grad) or _is_transformed(output):
            return
        own = self._own[module]
        if _has_others(module, own):
            return
        present = [p for p in module._parameters.values() if p is not None]
        trainable = [(p, q) for p, q in zip(own, present, strict=True) if p.requires_grad]
        if not trainable:
            return
        for p, q in trainable:
            self._watch(p, q)
        x = args[0] if args else kwargs["input"]
        with torch.no_grad():
            call: _Call[R, C] = _Call(self.receiver.remember(module, x.detach()))
        output.register_hook(_gradient_hook(self, module, call))  # type: ignore[no-untyped-call]

    def _watch(self, p: Tensor, present: Tensor) -> None:
        """Hear of gradients of ``p``: here and not in __init__, because a frozen one may thaw.

        ``present``: what stands for it in the call. With FSDP2 that is the gathered parameter, to whose gradient every
        backward pass adds, while that of the shard waits for the last micro-batch.
        """
        known = self._watched.get(id(present))
        if known is None or known() is not present:
            self._watched[id(present)] = weakref.ref(present)
            self._handles.append(present.register_post_accumulate_grad_hook(_accumulate_hook(self, p)))  # type: ignore[no-untyped-call]

    def arrived(self, module: nn.Module, call: _Call[R, C], s: Tensor) -> None:
        """The gradient of a call has arrived."""
        if self.closed:
            return
        if call.added:
            raise RuntimeError(
                f"the gradient of one call of {self._names[module]!r} has arrived in two backward passes that both add "
                "to the gradients of its parameters; add the losses and call backward once"
            )
        with torch.no_grad():
            call.contribution = self.receiver.contribution(module, call.remembered, s.detach())
        call.backward = torch._C._current_graph_task_id()
        self._open_calls[module].append(call)

    def accumulated(self, own: int) -> None:
        """The gradient of a parameter, given by its id, is complete: so are those of the calls of its modules."""
        if self.closed:
            return
        backward = torch._C._current_graph_task_id()
        for module in self._modules_of[own]:
            calls = self._open_calls[module]
            for call in calls:
                if call.backward == backward and call.contribution is not None:
                    self.receiver.add(module, call.contribution)
                    call.added = True
                call.contribution = None
            calls.clear()


def _has_others(module: nn.Module, own: Sequence[Tensor]) -> bool:
    """Whether functional_call has lent it parameters. FSDP2 has not: it gathers its own shards for the call."""
    strange = [p for p in module._parameters.values() if p is not None and not any(p is q for q in own)]
    gathered = all(is_dtensor(q) for q in own) and not any(is_dtensor(p) for p in strange)
    return bool(strange) and not gathered


def _is_transformed(x: Tensor) -> bool:
    """Whether a transformation of torch.func is at work."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def _remove_all(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _ForwardHook:
    """Tells a capture of a call. Of a copied or unpickled model, nobody."""

    def __init__(self, capture: Capture[Any, Any] | None = None) -> None:
        self._capture = None if capture is None else weakref.ref(capture)

    # where torch.compile meets it, the graph ends, this runs as it is, and another graph begins
    @_disable_dynamo  # torch.compiler.disable would import the whole compiler with this module
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        capture = None if self._capture is None else self._capture()
        if capture is not None:
            capture.called(module, args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _ForwardHook:
        return _ForwardHook()

    def __reduce__(self) -> tuple[type[_ForwardHook], tuple[()]]:
        return _ForwardHook, ()


def _gradient_hook(capture: Capture[R, C], module: nn.Module, call: _Call[R, C]) -> Callable[[Tensor], None]:
    return partial(_arrived, weakref.ref(capture), weakref.ref(module), call)


def _accumulate_hook(capture: Capture[Any, Any], p: Tensor) -> Callable[[Tensor], None]:
    return partial(_accumulated, weakref.ref(capture), id(p))


# torch.compile of a whole training step would also trace what the engine calls in the middle of its backward pass
@_disable_dynamo
def _arrived(owner: weakref.ref[Capture[R, C]], of: weakref.ref[nn.Module], call: _Call[R, C], s: Tensor) -> None:
    capture, module = owner(), of()
    if capture is not None and module is not None:
        capture.arrived(module, call, s)


@_disable_dynamo
def _accumulated(owner: weakref.ref[Capture[Any, Any]], own: int, present: Tensor) -> None:
    capture = owner()
    if capture is not None:
        capture.accumulated(own)
