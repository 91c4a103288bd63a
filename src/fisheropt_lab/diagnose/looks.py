"""What is kept of a diagnosis: numbers for JSON, and few enough entries to draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fisheropt import Diagnosis
from fisheropt.fisher import Agreement
from fisheropt.step_statistics import StepStatistics

DRAWN = 4000  # entries of all parameters, evenly spaced


@dataclass(frozen=True)
class Layer:
    """One tensor."""

    name: str
    fisher: Agreement  # B T^2 f against it
    empirical: Agreement
    empirical_and_fisher: Agreement
    fresh: Agreement  # f against fresh squares
    step: StepStatistics


@dataclass(frozen=True)
class Look:
    """One diagnosis in the course of training."""

    step: int
    loss: float  # of the training, mean over the last steps
    layers: tuple[Layer, ...]
    total: dict[str, Agreement]  # by the names of the fields of a layer
    halves: Agreement  # of the fresh squares, against each other
    noise_share: float
    critical_batch: float | None
    findings: tuple[tuple[str, str], ...]
    estimator: str
    batch_size: int
    labels: float
    drawn: dict[str, list[float]]  # held, fisher and empirical of the same entries

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        plain["layers"] = [
            {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in vars(layer).items()}
            for layer in self.layers
        ]
        plain["total"] = {key: value._asdict() for key, value in self.total.items()}
        plain["halves"] = self.halves._asdict()
        return plain


def look_of(diagnosis: Diagnosis, step: int, loss: float) -> Look:
    """What is kept."""
    d = diagnosis
    kinds = {
        "fisher": d.held_and_fisher,
        "empirical": d.held_and_empirical,
        "empirical_and_fisher": d.empirical_and_fisher,
        "fresh": d.staleness.held_and_fresh,
    }
    critical = d.noise.total.critical_batch
    return Look(
        step=step,
        loss=loss,
        layers=tuple(
            Layer(name, step=d.steps[name], **{kind: found.layers[name] for kind, found in kinds.items()})
            for name in d.held
        ),
        total={kind: found.total for kind, found in kinds.items()},
        halves=d.staleness.fresh_halves.total,
        noise_share=d.noise.noise_share(d.batch_size),
        critical_batch=critical if critical != float("inf") else None,
        findings=d.findings,
        estimator=d.fisher.estimator,
        batch_size=d.batch_size,
        labels=d.labels,
        drawn=_drawn(d),
    )


def _drawn(d: Diagnosis) -> dict[str, list[float]]:
    every = max(1, sum(x.numel() for x in d.held.values()) // DRAWN)
    return {
        kind: torch.cat([values[name].double().flatten() for name in d.held])[::every].tolist()
        for kind, values in (("held", d.held), ("fisher", d.fisher), ("empirical", d.empirical))
    }
