"""Batches of data, calls of a model with them, and models whose Fisher information cannot be had example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Batch", "batches", "call", "check_model", "check_outputs", "per_example", "trainable"]


class Batch(NamedTuple):
    """``inputs``: a tensor, a sequence or a mapping for the model's call; ``targets``: (N, ...); ``size``: N."""

    inputs: Any
    targets: Tensor
    size: int


def batches(data: Iterable[Any], max_examples: int | None) -> Iterator[Batch]:
    """The batches of ``data``, up to ``max_examples`` examples; the last one is cut if need be.

    Raises:
        TypeError: an item of ``data`` is no pair of inputs and targets.
    """
    left = max_examples
    for item in data:
        if left is not None and left <= 0:
            return
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Tensor)):
            raise TypeError(
                "data must yield pairs (inputs, targets) with a tensor of targets, got "
                f"{type(item).__name__}{f' of {len(item)}' if isinstance(item, tuple | list) else ''}; "
                "for other batches, pass a generator: ((b['x'], b['y']) for b in loader)"
            )
        inputs, targets = item
        size = targets.shape[0] if targets.dim() else 0
        if size == 0:
            continue
        if left is not None:
            if size > left:
                inputs = per_example(inputs, size, _First(left))
                targets, size = targets[:left], left
            left -= size
        yield Batch(inputs, targets, size)


class _First:
    """The first n rows."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __call__(self, x: Tensor) -> Tensor:
        return x[: self._n]


def per_example(inputs: Any, size: int, change: Callable[[Tensor], Tensor]) -> Any:
    """``inputs`` with every tensor that has ``size`` rows changed: those belong to examples, others to all of them."""
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.dim() and inputs.shape[0] == size else inputs
    if isinstance(inputs, Mapping):
        return {name: per_example(x, size, change) for name, x in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(per_example(x, size, change) for x in inputs)
    return inputs


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
