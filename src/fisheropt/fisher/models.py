"""Calls of a model for its Fisher information, and models of which no example has one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["call", "check_model", "check_outputs", "outputs_with", "stand_ins", "trainable", "undisturbed"]


def call(model: Callable[..., Any], inputs: Any) -> Tensor:
    """The outputs of the model, or their ``logits``.

    Raises:
        TypeError: it returns no tensor.
    """
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple | list):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model must return a tensor, or something with .logits, got {type(outputs).__name__}; wrap it"
        )
    return outputs


def check_outputs(outputs: Tensor, size: int) -> None:
    """Refuse outputs that say nothing of each example.

    Raises:
        ValueError: they have not ``size`` rows, or depend on no trainable parameter.
    """
    if outputs.dim() == 0 or outputs.shape[0] != size:
        raise ValueError(
            f"the model returned shape {tuple(outputs.shape)} for {size} examples: examples must be its first "
            "dimension; wrap the model if they are another"
        )
    if not outputs.requires_grad:
        raise ValueError("the outputs of the model depend on no parameter that requires a gradient")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, tied ones once.

    Raises:
        ValueError: there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to inform about")
    return found


def check_model(model: nn.Module) -> None:
    """Refuse what has no score per example, or would be changed by being looked at.

    Raises:
        TypeError: the model is wrapped for data parallelism, or is no module.
        ValueError: a layer computes statistics over the batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "model is wrapped in DistributedDataParallel; pass model.module, and average the diagonals of the processes"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            of_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if (module.training and (of_batch or module.track_running_stats)) or (
                of_batch and module.running_mean is None
            ):
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) takes its statistics from the batch"
                    f"{' and changes its running ones' if module.running_mean is not None else ''}: no example has a "
                    "gradient of its own then. Call model.eval() first, or use GroupNorm or LayerNorm"
                )
        if any(nn.parameter.is_lazy(p) for p in module._parameters.values()):
            raise ValueError(f"a parameter of {name or 'the model'} has no shape yet; call the model once first")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """With gradients enabled, whatever the caller's mode, and the random states put back at the end."""
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        yield


def stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """Name -> a leaf with the memory of a trainable parameter, and without its hooks and its ``grad``."""
    return {name: p.detach().requires_grad_() for name, p in trainable(model).items()}


def outputs_with(model: nn.Module, params: Mapping[str, Tensor], inputs: Any) -> Tensor:
    """The outputs of the model with other tensors in the place of its parameters."""

    def with_params(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(model, dict(params), args, kwargs)

    return call(with_params, inputs)
