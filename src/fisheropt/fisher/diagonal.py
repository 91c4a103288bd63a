"""A diagonal of the Fisher information of a model, and what has to be known of it to use it rightly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

__all__ = ["Estimator", "FisherDiagonal", "Unit"]

Estimator = Literal["exact", "mc", "empirical", "batched", "optimizer"]
"""Where the numbers come from: the table of `fisheropt.fisher.fisher_diag`; ``"optimizer"``: out of its state."""

Unit = Literal["example", "token"]
"""What F is an average over."""

_ERROR = "standard_error:"  # before the names of standard errors in a file


class FisherDiagonal(Mapping[str, Tensor]):
    """Name of a parameter -> the diagonal of its Fisher information, in the shape of the parameter.

    F is of ``-log p`` in nats, per unit, averaged over units: ``[1]/[parameter]^2``, >= 0. Names are those of
    ``model.named_parameters()``; frozen parameters are absent, tied weights are there once, under their first name.

    Args:
        values: name -> F.
        estimator: ``"exact"``, ``"mc"``, ``"empirical"``, ``"batched"`` or ``"optimizer"``.
        likelihood: of what: ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, or the name of a function.
        unit: ``"example"`` or ``"token"``.
        units: how many were averaged, >= 0.
        masked_units: how many were left out because all of their labels are masked, >= 0.
        standard_error: name -> standard error of F, over units and samples, in the shape of F; None: not known.

    Raises:
        ValueError: the estimator or the unit is unknown, a number is negative, or a standard error fits no F.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        estimator: Estimator,
        likelihood: str,
        unit: Unit = "example",
        units: int,
        masked_units: int = 0,
        standard_error: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, value, known in (("estimator", estimator, get_args(Estimator)), ("unit", unit, get_args(Unit))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        for name, number in (("units", units), ("masked_units", masked_units)):
            if number < 0:
                raise ValueError(f"{name} must be >= 0, got {number!r}")
        if standard_error is not None:
            shapes = {name: tuple(F.shape) for name, F in values.items()}
            found = {name: tuple(error.shape) for name, error in standard_error.items()}
            if found != shapes:
                raise ValueError("standard_error must have the names and shapes of the values")
        self._values = dict(values)
        self.estimator: Estimator = estimator
        self.likelihood = likelihood
        self.unit: Unit = unit
        self.units = units
        self.masked_units = masked_units
        self.standard_error = None if standard_error is None else dict(standard_error)

    # -- a mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        """Whether the other one says the same, bit for bit."""
        if not isinstance(other, FisherDiagonal):
            return NotImplemented
        return (
            self.metadata() == other.metadata()
            and _equal(self._values, other._values)
            and (self.standard_error is None) == (other.standard_error is None)
            and _equal(self.standard_error or {}, other.standard_error or {})
        )

    def __repr__(self) -> str:
        numbers = sum(F.numel() for F in self._values.values())
        masked = f" ({self.masked_units} masked)" if self.masked_units else ""
        return (
            f"FisherDiagonal({self.estimator}, {self.likelihood}: {len(self)} parameters, {numbers} numbers, "
            f"per {self.unit} over {self.units}{masked}, trace {self.trace():.4g}, {self.dtype})"
        )

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """In which the numbers are kept: the widest one, if they differ."""
        dtype = None
        for F in self._values.values():
            dtype = F.dtype if dtype is None else torch.promote_types(dtype, F.dtype)
        return torch.get_default_dtype() if dtype is None else dtype

    def trace(self) -> float:
        """The sum over all parameters, in float64."""
        return float(sum(F.double().sum().item() for F in self._values.values()))

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors."""
        names = ("estimator", "likelihood", "unit", "units", "masked_units")
        return {name: getattr(self, name) for name in names}

    # -- elsewhere ----------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FisherDiagonal:
        """The same on another device or in another dtype; tensors that are there already are shared."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.to(device=device, dtype=dtype) for name, x in tensors.items()}

        errors = None if self.standard_error is None else moved(self.standard_error)
        return FisherDiagonal(moved(self._values), **self.metadata(), standard_error=errors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: F under its names, standard errors beside it, the rest as metadata.

        Raises:
            ModuleNotFoundError: safetensors is missing: ``pip install 'fisheropt[fisher]'``.
        """
        tensors = {name: F.detach().contiguous() for name, F in self._values.items()}
        for name, error in (self.standard_error or {}).items():
            tensors[_ERROR + name] = error.detach().contiguous()
        _safetensors().save_file(tensors, os.fspath(path), metadata={"fisheropt.fisher": json.dumps(self.metadata())})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> FisherDiagonal:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is of another kind.
            ModuleNotFoundError: safetensors is missing.
        """
        with _safetensors().safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            metadata = (file.metadata() or {}).get("fisheropt.fisher")
            if metadata is None:
                raise ValueError(f"{os.fspath(path)} holds no Fisher diagonal: FisherDiagonal.save did not write it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        errors = {name.removeprefix(_ERROR): x for name, x in tensors.items() if name.startswith(_ERROR)}
        values = {name: x for name, x in tensors.items() if not name.startswith(_ERROR)}
        return cls(values, **json.loads(metadata), standard_error=errors or None)


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("safetensors"):
            raise
        raise ModuleNotFoundError(
            "FisherDiagonal.save and load need safetensors; pip install 'fisheropt[fisher]'", name="safetensors"
        ) from error
    return safetensors.torch
