"""What a group option may be: one check per option, shared by every optimizer that has it.

Checks run when a parameter group is added and when a state_dict is loaded. They never read a tensor back from an
accelerator except a tensor learning rate, once, at that moment.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fisheropt.kernels import BACKENDS

__all__ = ["check_options"]

_BOOKKEEPING = frozenset({"params", "param_names", "name", "initial_lr", "swa_lr", "lr_scale"})
"""Keys of a group that belong to torch, its schedulers or the layer-wise decay of timm, not to a rule."""

_OF_TORCH = frozenset({"foreach", "fused", "capturable", "differentiable", "amsgrad", "decoupled_weight_decay"})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    return float(value)


def _not_negative(name: str, value: Any) -> None:
    if not (0.0 <= _number(name, value) < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def _positive(name: str, value: Any) -> None:
    if not (0.0 < _number(name, value) < math.inf):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def _or_none(check: Callable[[str, Any], None], meaning: str) -> Callable[[str, Any], None]:
    def optional(name: str, value: Any) -> None:
        if value is None:
            return
        try:
            check(name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}; {name}=None {meaning}") from None

    return optional


def _lr(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        return _not_negative(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} as a tensor must have one element, got shape {tuple(value.shape)}")
    if value.is_complex():
        raise TypeError(f"{name} as a tensor must be real, got {value.dtype}")
    if value.device.type != "meta":
        _not_negative(name, float(value))
    return None


def _betas(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (beta1, beta2), got {value!r}")
    for i, beta in enumerate(value):
        if not 0.0 <= _number(f"{name}[{i}]", beta) < 1.0:
            raise ValueError(f"{name}[{i}] must be in [0, 1), got {beta!r}")


def _bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _at_least_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value!r}")


def _backend(name: str, value: Any) -> None:
    if value not in BACKENDS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, BACKENDS))}, got {value!r}")


def _state_dtype(name: str, value: Any) -> None:
    if value not in (None, torch.float32, torch.float64, torch.bfloat16, "int8"):
        raise ValueError(f"{name} must be None, torch.float32, torch.float64, torch.bfloat16 or 'int8', got {value!r}")


def _seed(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < 2**32:
        raise ValueError(f"{name} must be in [0, 2**32), got {value!r}")


def _beta(name: str, value: Any) -> None:
    if not 0.0 <= _number(name, value) < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def _gammas(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (gamma1, gamma2), got {value!r}")
    for i, gamma in enumerate(value):
        _beta(f"{name}[{i}]", gamma)


def _normalize(name: str, value: Any) -> None:
    if value not in ("after", "before"):
        raise ValueError(f"{name} must be 'after' or 'before' (the moving average), got {value!r}")


def _fisher(name: str, value: Any) -> None:
    if value not in ("batch", "microbatch"):
        raise ValueError(f"{name} must be 'batch' or 'microbatch', got {value!r}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": _lr,
    "beta": _beta,
    "betas": _betas,
    "gammas": _gammas,
    "damping": _positive,
    "update_every": _at_least_one,
    "normalize": _normalize,
    "eps": _not_negative,
    "eps2": _or_none(_not_negative, "makes the epsilon constant"),
    "eps_decay": _not_negative,
    "clip": _or_none(_positive, "switches clipping off"),
    "max_norm": _or_none(_positive, "switches clipping off"),
    "rho": _positive,
    "fisher": _fisher,
    "weight_decay": _not_negative,
    "momentum": _bool,
    "maximize": _bool,
    "min_dim_size_to_factor": _at_least_one,
    "backend": _backend,
    "state_dtype": _state_dtype,
    "stochastic_rounding": _bool,
    "seed": _seed,
}


def check_options(group: Mapping[str, Any], known: Iterable[str], optimizer: str, loaded: bool = False) -> None:
    """Check every option of a parameter group.

    Args:
        group: option -> value; keys that start with an underscore are the caller's own and pass.
        known: the options of the optimizer.
        optimizer: its name, for the messages.
        loaded: the group comes from a checkpoint, where schedulers and other tools may have left keys of their own;
            then only the options of torch's optimizers are refused, for the checkpoint is one of theirs.

    Raises:
        ValueError: an option is unknown or out of its range.
        TypeError: an option has the wrong type.
    """
    known = set(known)
    for name, value in group.items():
        if name in known:
            _CHECKS[name](name, value)
        elif name in _OF_TORCH or not (loaded or name in _BOOKKEEPING or name.startswith("_")):
            raise ValueError(f"unknown option {name!r} for {optimizer}; {_advice(name, known)}")


def _advice(name: str, known: set[str]) -> str:
    if name in _OF_TORCH:
        return "that is an option of torch's own optimizers: remove it (backend= chooses the implementation here)"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(sorted(known))}; a key of your own must start with an underscore"
