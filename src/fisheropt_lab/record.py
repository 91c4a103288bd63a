"""What one trial leaves behind. A `Record` knows nothing of the test split; what that said is `HeldOut`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fisheropt_lab.spec import Trial


@dataclass(frozen=True)
class Evaluation:
    """The validation loss after `step` updates and `seconds` of training."""

    step: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Exhibit:
    """Something a reader of the report can look at: what a trained model makes of a few examples."""

    title: str
    kind: Literal["text", "png"]
    content: str  # the text, or the picture in base64


@dataclass(frozen=True)
class LayerCurvature:
    """AdaFisher's F of one parameter at the end of a trial."""

    entries: int
    kind: str  # kronecker where layers explain the parameter, elementwise where its own gradients do
    min: float
    median: float
    max: float
    near_damping: float  # the fraction of entries within 10 % of the damping: there a step is momentum SGD's


@dataclass(frozen=True)
class HeldOut:
    """What the test split said of a trained model, asked once, at the end of its schedule."""

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)  # the task's, by name
    exhibits: tuple[Exhibit, ...] = ()  # what the task shows of the first reported seed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"exhibits": [asdict(one) for one in self.exhibits]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOut:
        """The inverse of `to_json`."""
        return cls(value["loss"], value["metrics"], tuple(Exhibit(**one) for one in value["exhibits"]))


@dataclass
class Record:
    """Grows while the trial runs; `validation_loss` stays None if it diverges."""

    trial: Trial
    train_loss: list[float] = field(default_factory=list)  # per step, of that step's batch before the update
    train_seconds: list[float] = field(default_factory=list)  # cumulative after each step, evaluations left out
    optimizer_ms: list[float] = field(default_factory=list)  # per step, the optimizer's own part
    evaluations: list[Evaluation] = field(default_factory=list)  # of the validation split
    validation_loss: float | None = None  # at the end of training
    diverged_at_step: int | None = None  # the first step whose loss was not finite
    parameters: int = 0  # of the model
    state_bytes: int = 0  # of the optimizer
    backends: dict[str, int] = field(default_factory=dict)  # backend -> number of parameter tensors
    curvature: dict[str, LayerCurvature] = field(default_factory=dict)  # by parameter; AdaFisher's alone
    resumed_at_steps: list[int] = field(default_factory=list)  # where an interrupted run went on
    finished: str = ""  # UTC

    @property
    def seconds(self) -> float:
        """Training time so far, evaluations left out."""
        return self.train_seconds[-1] if self.train_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """The inverse of `to_json`."""
        evaluations = [Evaluation(**evaluation) for evaluation in value["evaluations"]]
        curvature = {name: LayerCurvature(**layer) for name, layer in value.get("curvature", {}).items()}
        parts = {"trial": Trial.from_json(value["trial"]), "evaluations": evaluations, "curvature": curvature}
        return cls(**(value | parts))
