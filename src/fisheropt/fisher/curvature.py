"""The Fisher information of a model as AdaFisher keeps it: moving averages of factors, and the metric they give.

Source: arXiv:2405.16397, Algorithm 1. From the means Hhat and Shat of `fisheropt.fisher.factors`, with weights
(gamma1, 1 - gamma2) that the paper takes from one gamma::

    H = gamma1 H + (1 - gamma2) Hhat ;  S = gamma1 S + (1 - gamma2) Shat
    H' = minmax(H) ;  S' = minmax(S)
    F = S' outer H' + lambda                               shape (out, in [+1])

``normalize="before"`` is what the authors' published script does: minmax on Hhat and Shat, then the average, which
starts at 1, and no minmax after it (SPEC D14). With ``"after"`` the averages start at 0; where they start makes no
difference to a minmax, but a large start would cost them their digits.

Parameters that no layer explains keep one number per element, f = gamma1 f + (1 - gamma2) g^2 in place of the factors,
and F = minmax(f) + lambda (D17): those of norms and of other modules, bare ones, and those of a layer that was not
called, such as the output projection of `nn.MultiheadAttention`. A parameter of several layers has the sum of their
S' outer H' (D18). What explains a parameter can change: as soon as its layer is seen, the layer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fisheropt._dtensor import extremes, gathered, is_dtensor, local, placed_like, shard_of
from fisheropt.fisher.accumulate import FactorSums
from fisheropt.fisher.capture import Capture
from fisheropt.fisher.factors import Layer, Role, layer_of, minmax

__all__ = ["Curvature", "CurvatureSummary", "Normalize"]

Normalize = Literal["after", "before"]
"""Whether minmax is taken after the moving average or before it."""

_ROLES: tuple[Role, ...] = ("weight", "bias")


class CurvatureSummary(NamedTuple):
    """The metric of one parameter in five numbers.

    Attributes:
        kind: ``"kronecker"`` where layers explain it, ``"elementwise"`` where its own gradients do.
        min, median, max: of F, which is in [lambda, 1 + lambda] (times the number of layers that share it).
        near_damping: the fraction of its entries that are at most 1.1 lambda: there a step is that of momentum SGD with
            learning rate eta/lambda.
    """

    kind: Literal["kronecker", "elementwise"]
    min: float
    median: float
    max: float
    near_damping: float


class Curvature:
    """Moving averages of the factors of the layers of a model.

    Args:
        model: whose layers are watched, until `close`.
        process_groups: those over which data is parallel; see `FactorSums`.

    Attributes:
        names: parameter -> its name in the model, for all parameters.
        factors: name -> what is known. Of a layer, by the name of its weight: ``H`` (inputs [+1],), ``S`` (outputs,),
            float64. Of a parameter without one: ``f``, of its shape and sharded like it. And ``updates``, how often.
    """

    def __init__(self, model: nn.Module, process_groups: Sequence[Any] = ()) -> None:
        self.names: dict[Parameter, str] = {p: name for name, p in model.named_parameters()}
        self.factors: dict[str, dict[str, Any]] = {}
        self._layers: dict[str, tuple[nn.Module, Layer]] = {}
        self._uses: dict[Parameter, list[tuple[str, Role]]] = {}
        for path, module in model.named_modules():
            if (layer := layer_of(module)) is None:
                continue
            name = f"{path}.weight" if path else "weight"
            self._layers[name] = module, layer
            for role in _ROLES:
                p = module._parameters.get(role)
                if p is not None:
                    self._uses.setdefault(p, []).append((name, role))
        self._normalised: dict[str, tuple[Tensor, Tensor]] = {}  # S' and H' of layers, until the next update
        self._extremes: dict[str, Tensor] = {}  # of those f that are sharded, until the next update
        self._placed: dict[tuple[Parameter, torch.dtype], tuple[Tensor, Tensor]] = {}  # what `metric` gave, until then
        self._sums = FactorSums(self._layers, process_groups)
        self._capture = Capture({name: module for name, (module, _) in self._layers.items()}, self._sums)

    # -- watching -----------------------------------------------------------------------------------------------------

    def watch(self, due: bool) -> None:
        """Whether the calls of layers are counted from now on."""
        self._sums.due = due

    def forget(self) -> None:
        """Drop what was seen since the last `update`: its gradients will not be used."""
        self._sums.clear()
        self._capture.forget()

    def close(self) -> None:
        """Remove all hooks from the model."""
        self._capture.close()

    @property
    def closed(self) -> bool:
        return self._capture.closed

    # -- learning -----------------------------------------------------------------------------------------------------

    def update_layers(self, gammas: tuple[float, float], normalize: Normalize, loss_scale: float | Tensor) -> None:
        """Take what was seen of the layers since the last update into their averages; a layer not seen stays as it is.

        Collective where there is a process group.
        """
        means = self._sums.means(loss_scale)
        self._capture.forget()
        self._placed.clear()
        for name, (Hhat, Shat) in means.items():
            known = self.factors.get(name)
            if known is None or "H" not in known:
                start = _start(normalize)
                known = {"H": torch.full_like(Hhat, start), "S": torch.full_like(Shat, start), "updates": 0}
                self.factors[name] = known
            _average(known["H"], Hhat, gammas, normalize)
            _average(known["S"], Shat, gammas, normalize)
            known["updates"] += 1
            self._normalised.pop(name, None)
        for p, name in self.names.items():
            if "f" in self.factors.get(name, {}) and self._seen_uses(p):
                del self.factors[name]

    def update_parameters(
        self,
        gradients: Sequence[tuple[Parameter, Tensor, torch.dtype]],
        due: bool,
        gammas: tuple[float, float],
        normalize: Normalize,
    ) -> None:
        """Take gradients into the averages of parameters that no layer explains: when due, and the first time at once.

        Collective where such parameters are sharded.

        Args:
            gradients: parameters, their gradients of the step, complete and without a loss scale, and the dtypes in
                which f is kept.
        """
        squares: dict[str, Tensor] = {}
        for p, g, dtype in gradients:
            name = self.names[p]
            if self._seen_uses(p) or not (due or name not in self.factors):
                continue
            if name not in self.factors:
                f = torch.full_like(p, _start(normalize), dtype=dtype, requires_grad=False)
                self.factors[name] = {"f": f, "updates": 0}
            self._placed.pop((p, dtype), None)
            squares[name] = placed_like(p, g).to(dtype).square().clamp_(max=torch.finfo(dtype).max / 2)
        of_squares = _extremes_of(squares) if normalize == "before" else {}
        for name, g2 in squares.items():
            known = self.factors[name]
            _average(local(known["f"]), local(g2), gammas, normalize, of_squares.get(name))
            known["updates"] += 1
            self._extremes.pop(name, None)
        if normalize == "after":
            new = {n: known["f"] for n, known in self.factors.items() if "f" in known and n not in self._extremes}
            self._extremes.update(_extremes_of(new))

    def unseen(self, p: Parameter) -> list[str]:
        """The layers of ``p`` that are in training mode, if none of its layers has ever been seen."""
        if self._seen_uses(p):
            return []
        return [name for name, _ in self._uses.get(p, []) if self._layers[name][0].training]

    def knows_a_layer(self) -> bool:
        """Whether any layer has ever been seen."""
        return any("H" in known for known in self.factors.values())

    # -- the metric ---------------------------------------------------------------------------------------------------

    def metric(self, p: Parameter, normalize: Normalize, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows and columns of F without the damping: ``F = sum over r of rows[r] columns[r] + lambda``.

        Returns:
            Two tensors that broadcast to (layers of p, *shape of p), in the parameter's own orientation. For a Linear
            the rows are S' and the columns H', for an Embedding the other way round.

        Raises:
            KeyError: nothing is known of ``p`` yet.
        """
        if (p, dtype) in self._placed:
            return self._placed[p, dtype]
        rows, columns = self._whole_metric(p, normalize, dtype)
        if is_dtensor(p):
            rows, columns = shard_of(p, rows) if self._seen_uses(p) else rows, shard_of(p, columns)
        if max(rows.numel(), columns.numel()) < p.numel() or p.dim() < 2:  # what is as large as p is not kept
            self._placed[p, dtype] = rows, columns
        return rows, columns

    def _whole_metric(self, p: Parameter, normalize: Normalize, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows and columns for the whole of ``p``; but the rows of what no layer explains are of this shard."""
        uses = self._seen_uses(p)
        if uses:
            placed = []
            for name, role in uses:
                S, H = self._of_layer(name, normalize)
                rows, columns = self._layers[name][1].placed(role, S, H)
                placed.append((rows.to(dtype), columns.to(dtype)))
            all_rows, all_columns = (_stacked(factors) for factors in zip(*placed, strict=True))
        else:
            name = self.names[p]
            f = local(self.factors[name]["f"])
            all_rows = (minmax(f, self._extremes.get(name)) if normalize == "after" else f).to(dtype).unsqueeze(0)
            all_columns = torch.ones((1,) * (p.dim() + 1), dtype=dtype, device=p.device)
        return all_rows, all_columns

    def summary(self, p: Parameter, normalize: Normalize, damping: float) -> CurvatureSummary | None:
        """The metric of ``p`` in numbers, or None if nothing is known of it yet. Collective where p is sharded."""
        if p.numel() == 0 or not (self._seen_uses(p) or self.names.get(p) in self.factors):
            return None
        rows, columns = self._whole_metric(p, normalize, torch.float64)
        if is_dtensor(p) and not self._seen_uses(p):
            rows = gathered(p, rows.squeeze(0)).unsqueeze(0)
        F = (rows * columns).sum(0).expand(p.shape) + damping
        kind: Literal["kronecker", "elementwise"] = "kronecker" if self._seen_uses(p) else "elementwise"
        near = (F - damping <= 0.1 * damping).double().mean()
        return CurvatureSummary(kind, *(float(x) for x in (F.min(), F.median(), F.max(), near)))

    def _seen_uses(self, p: Parameter) -> list[tuple[str, Role]]:
        return [use for use in self._uses.get(p, []) if "H" in self.factors.get(use[0], {})]

    def _of_layer(self, name: str, normalize: Normalize) -> tuple[Tensor, Tensor]:
        """S' and H' of a layer."""
        known = self.factors[name]
        if normalize == "before":
            return known["S"], known["H"]
        if name not in self._normalised:
            self._normalised[name] = minmax(known["S"]), minmax(known["H"])
        return self._normalised[name]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def checked(self, factors: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Copies of saved `factors`, where the model has its parameters.

        Raises:
            ValueError: they are of another model: a name it does not have, or another shape.
        """
        shapes = {name: {"f": tuple(p.shape)} for p, name in self.names.items()}
        devices = {name: p.device for p, name in self.names.items()}
        for name, (module, layer) in self._layers.items():
            shapes.setdefault(name, {}).update(H=(layer.inputs + layer.bias,), S=(layer.outputs,))
            devices[name] = next(module.parameters()).device
        checked: dict[str, dict[str, Any]] = {}
        for name, saved in factors.items():
            if name not in shapes:
                raise ValueError(f"the saved factors have {name!r}, which the model does not")
            if set(saved) not in ({"H", "S", "updates"}, {"f", "updates"}):
                raise ValueError(f"the saved factors of {name!r} are {sorted(saved)}, not H, S, updates or f, updates")
            known: dict[str, Any] = {"updates": int(saved["updates"])}
            for letter in set(saved) - {"updates"}:
                expected = shapes[name].get(letter)
                if tuple(saved[letter].shape) != expected:
                    found = tuple(saved[letter].shape)
                    raise ValueError(f"the saved {letter} of {name!r} has shape {found}, the model needs {expected}")
                known[letter] = self._copied(name, letter, saved[letter].detach().to(devices[name]))
            checked[name] = known
        return checked

    def _copied(self, name: str, letter: str, saved: Tensor) -> Tensor:
        """A copy, which for f has the memory layout of its parameter: that may be another than when it was saved."""
        if letter != "f":
            return saved.clone()
        p = next(p for p, its in self.names.items() if its == name)
        return torch.empty_like(p, dtype=saved.dtype, requires_grad=False).copy_(placed_like(p, saved))

    def adopt(self, factors: dict[str, dict[str, Any]]) -> None:
        """Go on from these factors, which become the curvature's own; forget everything else."""
        self.factors = factors
        self._normalised.clear()
        self._placed.clear()
        self._extremes.clear()
        self.forget()


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Layers of one parameter may differ in what they leave to broadcasting."""
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
    return torch.stack([x.expand(shape) for x in tensors])


def _start(normalize: Normalize) -> float:
    return 0.0 if normalize == "after" else 1.0


def _extremes_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Smallest and largest number of those that are sharded."""
    sharded = {name: x for name, x in tensors.items() if is_dtensor(x)}
    return dict(zip(sharded, extremes(list(sharded.values())), strict=True)) if sharded else {}


def _average(
    average: Tensor,
    new: Tensor,
    gammas: tuple[float, float],
    normalize: Normalize,
    of_new: Tensor | None = None,
) -> None:
    """``average = gamma1 average + (1 - gamma2) new`` in place, of the new one's minmax where that comes before."""
    gamma1, gamma2 = gammas
    if normalize == "before":
        new = minmax(new, of_new)
    average.mul_(gamma1).add_(new, alpha=1.0 - gamma2)
