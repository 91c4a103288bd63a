"""Which learning rate an optimizer is judged at. Records carry validation losses only, so the test split has no say."""

from __future__ import annotations

from fisheropt_lab.record import Record
from fisheropt_lab.spec import Spec


def leader(records: list[Record]) -> Record | None:
    """The trial with the lowest final validation loss; the smaller lr of two equals, None if all diverged."""
    finished = [record for record in records if record.validation_loss is not None]
    return min(finished, key=lambda record: (record.validation_loss, record.trial.lr), default=None)


def best_lrs(spec: Spec, search: list[Record]) -> dict[str, float]:
    """The chosen learning rate per optimizer; an optimizer whose trials all diverged is absent."""
    chosen: dict[str, float] = {}
    for name in spec.optimizers:
        best = leader([record for record in search if record.trial.optimizer == name])
        if best is not None:
            chosen[name] = best.trial.lr
    return chosen
