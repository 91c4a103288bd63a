"""The switchboard: which code runs a rule, on which device.

A backend is a leaf of this package, ``kernels/<backend>/<rule>.py``, that exports a function with the rule's own name
and signature (and, if it can take many tensors at once, the same over lists: ``<rule>_many``), and

    supports(p, g, slots, options) -> str | None

the reason why it cannot take a tensor, or None. With ``STORED = True`` it takes small state as it is kept (`Stored`).
What a leaf cannot take runs eagerly. Rules do not know about any of
this, and leaves do not know about optimizers.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["BACKENDS", "BackendUnavailableError", "Implementation", "Stored", "implementation"]

BACKENDS = ("auto", "eager", "compile", "numba", "triton")

_FUSED = {"cpu": "numba", "cuda": "triton"}  # device type -> the backend with fused kernels for it
_AUTO = {"cpu": "numba"}  # those "auto" takes: the Triton kernels have not run on a GPU yet, and must be named
_EXTRA = {"numba": "cpu", "triton": "cuda"}  # backend -> the extra of this distribution that installs it

RuleFunction = Callable[..., None]


class Stored(NamedTuple):
    """A tensor that is kept in fewer bits than the rule works in, and rounded stochastically.

    Attributes:
        values: bfloat16; or codes of 8 bits: int8 for ``code / 127``, uint8 for ``(code / 255)^2``, times the scale.
        scale: of each ``block`` of numbers, in memory order, float32; None for bfloat16.
        block: how many numbers share a scale, or 0.
        salt: of the noise (`fisheropt._rounding`).
    """

    values: Tensor
    scale: Tensor | None
    block: int
    salt: int


Argument = Tensor | Stored
Supports = Callable[[Argument, Tensor, Sequence[Argument | None], Mapping[str, Any]], str | None]


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot be had here; the message says what to do."""


def _anything(p: Argument, g: Tensor, slots: Sequence[Argument | None], options: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run a rule.

    Attributes:
        backend: its name.
        one: the rule for one tensor.
        many: the rule over lists of tensors, or None.
        supports: why a tensor cannot be taken, or None.
        native: takes parameters and gradients in their own low-precision dtypes, and asks for no shape but that they
            walk memory together; otherwise they arrive widened and flat.
        stored: takes parameters and slots as `Stored`; otherwise they arrive widened, and are rounded afterwards.
    """

    backend: str
    one: RuleFunction
    many: RuleFunction | None = None
    supports: Supports = _anything
    native: bool = False
    stored: bool = False


@cache
def implementation(rule: RuleFunction, device: str, backend: str) -> Implementation:
    """The code that runs ``rule`` on tensors of a device.

    Args:
        rule: the rule as it is written in eager PyTorch.
        device: a device type, such as ``"cpu"``.
        backend: one of `BACKENDS`.

    Raises:
        BackendUnavailableError: the backend was named and is not to be had: not for this device, not for this rule,
            or not installed.
    """
    if backend == "eager":
        return Implementation("eager", rule)
    if backend == "compile":
        from fisheropt.kernels.compiled import compiled

        return Implementation("compile", compiled(rule))
    if backend == "auto":
        return _fastest(rule, device)
    if _FUSED.get(device) != backend:
        raise BackendUnavailableError(
            f"backend={backend!r} does not run on device {device!r}; use backend='auto', which falls back"
        )
    if not _has_leaf(backend, rule):
        raise BackendUnavailableError(
            f"backend={backend!r} has no kernel for {rule.__name__}; use backend='auto', 'eager' or 'compile'"
        )
    if importlib.util.find_spec(backend) is None:
        raise BackendUnavailableError(f"backend={backend!r} needs {_remedy(backend)}")
    return _leaf(backend, rule)


def _fastest(rule: RuleFunction, device: str) -> Implementation:
    fused = _AUTO.get(device)
    if fused is not None and _has_leaf(fused, rule):
        if importlib.util.find_spec(fused) is not None:
            return _leaf(fused, rule)
        warnings.warn(
            f"fisheropt runs {rule.__name__} as plain tensor operations; the fused kernel for {device} needs "
            f"{_remedy(fused)} (this is said once; backend='eager' says you know)",
            stacklevel=2,
        )
    return Implementation("eager", rule)


def _remedy(backend: str) -> str:
    return f"{backend}: pip install 'fisheropt[{_EXTRA[backend]}]'"


def _module(backend: str, rule: RuleFunction) -> str:
    return f"{__name__}.{backend}.{rule.__name__}"


@cache
def _has_leaf(backend: str, rule: RuleFunction) -> bool:
    if importlib.util.find_spec(f"{__name__}.{backend}") is None:
        return False
    return importlib.util.find_spec(_module(backend, rule)) is not None


def _leaf(backend: str, rule: RuleFunction) -> Implementation:
    leaf = importlib.import_module(_module(backend, rule))
    return Implementation(
        backend,
        one=getattr(leaf, rule.__name__),
        many=getattr(leaf, f"{rule.__name__}_many", None),
        supports=leaf.supports,
        native=True,
        stored=getattr(leaf, "STORED", False),
    )
