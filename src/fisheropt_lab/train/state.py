"""Model and optimizer to and from the files of a checkpoint, whatever they are sharded over.

Everything goes through torch.distributed.checkpoint, by the names of the parameters: each process writes its shards
and reads those parts of the files that it needs, on however many processes. An optimizer that watches layers keeps
factors of whole layers beside the state of parameters, for which torch's functions have no place: its own state_dict
is one file more, made whole tensor by tensor in the memory of the first process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fisheropt_lab.errors import LabError
from fisheropt_lab.files import load_tensors, save_tensors
from fisheropt_lab.train.world import World

WATCHING = "optimizer.pt"  # the file of an optimizer that watches layers


def write_state(folder: Path, model: nn.Module, optimizer: Optimizer, watches: bool, world: World) -> set[str]:
    """Write the files into an empty folder, together with all processes; the names of what all of them wrote."""
    state = _state(model, None if watches else optimizer)
    with _known_to_be_alone(world):
        index = save(state, checkpoint_id=folder, no_dist=world.size == 1)
    names = {".metadata", *(info.relative_path for info in index.storage_data.values())}
    if watches:
        names.add(WATCHING)
        whole = _whole(optimizer.state_dict(), world)
        world.once(lambda: save_tensors(folder / WATCHING, whole))
    return names


def read_state(folder: Path, model: nn.Module, optimizer: Optimizer, watches: bool, world: World) -> None:
    """Put model and optimizer where the files say."""
    state = _state(model, None if watches else optimizer)
    try:
        with _known_to_be_alone(world):
            load(state, checkpoint_id=folder, no_dist=world.size == 1)
        set_model_state_dict(model, state["model"])
        if watches:
            optimizer.load_state_dict(load_tensors(folder / WATCHING))
        else:
            set_optimizer_state_dict(model, optimizer, state["optimizer"])
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise LabError(
            f"{folder} is whole, but what is in it does not fit this {type(optimizer).__name__}: {reason}; "
            "go on with the version of fisheropt and torch that its checkpoint.json names, or start a new run"
        ) from error


@contextmanager
def _known_to_be_alone(world: World) -> Iterator[None]:
    """torch warns of a process without others even where it was told that there are none."""
    with warnings.catch_warnings():
        if world.size == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _state(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    return state


def _whole(state: Any, world: World) -> Any:
    """The state with its shards put together, on the CPU of the first process; the others keep none of them."""
    if isinstance(state, dict):
        return {key: _whole(value, world) for key, value in state.items()}
    if isinstance(state, DTensor):
        gathered = state.full_tensor()
        return gathered.cpu() if world.first else None
    return state


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """Name -> shape of the whole parameter: what tells a checkpoint of this model from one of another."""
    return {name: list(value.shape) for name, value in get_model_state_dict(model).items() if torch.is_tensor(value)}
