"""Monitor: what the epsilon, the clip and the weight decay of an optimizer do while it trains.

Every so many steps it compares the parameters before and after the step, and reads f and the momentum out of the
optimizer's state (`fisheropt.step_statistics`), where the step has just computed them; the epsilon, the natural
gradient and the decay term are formed once more from those. It reads and never writes: a run with a monitor and one
without end with the same bits. Between the steps it looks at, it does nothing; in one that it looks at, a copy of the
parameters lives for as long as the step takes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt._dtensor import is_dtensor
from fisheropt.step_statistics import QUANTILES, StepStatistics, step_statistics

__all__ = ["Monitor"]

Row = dict[str, Any]


class Monitor:
    """Writes what steps do to the parameters, every so many steps, as JSON lines and for TensorBoard.

    Each line of the file is an object: ``step``, counted from 1; ``total``, the numbers of all parameters together;
    and ``parameters``, name -> the numbers of `fisheropt.step_statistics.StepStatistics`. What does not exist is null.
    In the totals, ``clipped`` is the share of the tensors whose clip was at work, ``epsilon_share`` that of the entries
    whose metric is more epsilon than Fisher, ``update_ratio`` the norm of the change over that of the weights.

    Args:
        optimizer: any one whose `step` runs hooks (`fisheropt.step_in_backward` runs none). The change of the weights
            is there for all, f and the epsilon for those that average squares, clip and decay for FAdam and FAdafactor.
        every: look at each step whose number divides by it, and at the first, >= 1.
        path: of a file to append lines to, or None.
        tensorboard: a ``SummaryWriter``, or the folder for one (``pip install 'fisheropt[monitor]'``), or None.
        model: whose names the parameters have, or None: those of the optimizer's groups, else ``"group.index"``.
        step: how many steps were done before, for a run that goes on.

    Attributes:
        latest: the last line, as a dict; empty before there is one.

    Raises:
        ValueError: ``every`` or ``step`` is out of its range.
        TypeError: a parameter is a DTensor.
        ModuleNotFoundError: ``tensorboard`` is a folder and the package is missing.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fisheropt.FAdam(model.parameters(), lr=1e-3)
        >>> with fisheropt.Monitor(optimizer, every=1, model=model) as monitor:
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
        >>> sorted(monitor.latest["parameters"])
        ['bias', 'weight']
        >>> monitor.latest["total"]["clipped"]
        0.0
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        every: int = 50,
        path: str | os.PathLike[str] | None = None,
        tensorboard: Any = None,
        model: nn.Module | None = None,
        step: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step!r}")
        for group in optimizer.param_groups:
            if any(is_dtensor(p) for p in group["params"]):
                raise TypeError("Monitor looks at whole tensors, and the optimizer has sharded ones (DTensor)")
        self.latest: Row = {}
        self._optimizer = optimizer
        self._every = every
        self._step = step
        self._names = {} if model is None else {p: name for name, p in model.named_parameters()}
        self._before: dict[Tensor, Tensor] = {}
        self._writer, self._owns_writer = _writer(tensorboard)
        self._path = None if path is None else Path(path)
        self._handles = [
            optimizer.register_step_pre_hook(self._about_to_step),
            optimizer.register_step_post_hook(self._stepped),
        ]

    def close(self) -> None:
        """Remove the hooks and close the writer if it was opened here. Closing twice is closing once."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._owns_writer:
            self._writer.close()
            self._owns_writer = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- around a step ------------------------------------------------------------------------------------------------

    def _about_to_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._step += 1
        if self._step == 1 or self._step % self._every == 0:
            self._before = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}

    def _stepped(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._before:
            return
        found: dict[str, StepStatistics] = {}
        for i, group in enumerate(optimizer.param_groups):
            own_names = group.get("param_names")
            for j, p in enumerate(group["params"]):
                statistics = step_statistics(optimizer, p, group, self._before[p])
                if statistics is not None:
                    found[self._names.get(p) or (own_names[j] if own_names else f"{i}.{j}")] = statistics
        self._before = {}
        rows = {name: _finite(statistics._asdict()) for name, statistics in found.items()}
        self.latest = {"step": self._step, "total": _finite(_total(found.values())), "parameters": rows}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.latest, allow_nan=False) + "\n")
        if self._writer is not None:
            self._write_scalars()

    def _write_scalars(self) -> None:
        for name, value in self.latest["total"].items():
            if value is not None:
                self._writer.add_scalar(f"total/{name}", value, self._step)
        for parameter, row in self.latest["parameters"].items():
            quantiles = row.pop("fisher_quantiles") or ()
            named = {f"fisher_{100 * q:g}%": value for q, value in zip(QUANTILES, quantiles, strict=False)}
            for name, value in {**row, **named}.items():
                if value is not None and name != "entries":
                    self._writer.add_scalar(f"{name}/{parameter}", value, self._step)
            row["fisher_quantiles"] = quantiles or None


def _total(found: Iterable[StepStatistics]) -> Row:
    """All tensors together: norms by their squares, shares by entries, the clip by tensors."""
    tensors = list(found)

    def norm(of: Callable[[StepStatistics], float]) -> float:
        return math.sqrt(sum(s.entries * of(s) ** 2 for s in tensors))

    weight, update = norm(lambda s: s.weight_rms), norm(lambda s: s.update_rms)
    clips = [s.clip for s in tensors if s.clip is not None]
    by_entries = [(s.entries, s.epsilon_share) for s in tensors if s.epsilon_share is not None]
    decays = [(s.entries, s.decay_share) for s in tensors if s.decay_share is not None]
    return {
        "grad_norm": norm(lambda s: s.grad_rms),
        "update_norm": update,
        "weight_norm": weight,
        "update_ratio": update / weight if weight else None,
        "clipped": sum(clip > 1 for clip in clips) / len(clips) if clips else None,
        "epsilon_share": _mean(by_entries),
        "decay_share": _mean(decays),
    }


def _mean(weighted: list[tuple[int, float]]) -> float | None:
    return sum(n * x for n, x in weighted) / sum(n for n, _ in weighted) if weighted else None


def _finite(row: Mapping[str, Any]) -> Row:
    """JSON has no NaN and no infinity."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(x) for x in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in row.items()}


def _writer(tensorboard: Any) -> tuple[Any, bool]:
    """A SummaryWriter, and whether it is ours to close."""
    if tensorboard is None or hasattr(tensorboard, "add_scalar"):
        return tensorboard, False
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "Monitor writes for TensorBoard with the package tensorboard; pip install 'fisheropt[monitor]'",
            name="tensorboard",
        ) from error
    return SummaryWriter(os.fspath(tensorboard)), True
