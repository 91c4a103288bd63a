"""The one table of what is tested: optimizers, their backends, hyper-parameters, shapes, gradient scales, dtypes.

A new optimizer gets every test of rules/, contract/ and properties/ by one `OptimizerInfo`, a new kernel by being
available. What is not run is data too, with the reason.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tests.oracle.adafactor import adafactor
from tests.oracle.adafisher import adafisher, adafisherw
from tests.oracle.adam import adam
from tests.oracle.fadafactor import factored_dims, fadafactor
from tests.oracle.fadam import fadam
from tests.oracle.naturaladam import naturaladam

from fisheropt import AdaFisher, AdaFisherW, FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt.kernels import BACKENDS, BackendUnavailableError

SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4)
CLIPS = (0.5, 1.0, 2.0, 10.0, None)
RHOS = (0.3, 0.5, 0.7, 1.0)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}

SHAPES = ((), (1,), (7,), (5, 3), (5, 2, 3), (3, 5, 2, 4))
MATRICES = ((3, 5), (3, 4, 3))  # the second has a choice of dimensions to factor over
LONG = (1024 * 33 + 7,)
WIDE = (130, 257)  # more than 1024 * 32 elements, and large enough to be factored by default


class Bag(torch.nn.Module):
    """A model without layers, whose parameters are the tensors of an optimizer's ``params``, under their names there.

    An optimizer that takes a model then takes any tensors, with any gradients, as the others do.
    """

    def __init__(self, params: Any) -> None:
        super().__init__()
        groups = params if isinstance(params, list) else []
        if not all(isinstance(group, dict) for group in groups):
            groups = [{"params": groups}]
        for i, group in enumerate(groups):
            given = group["params"]
            for j, p in enumerate(given if isinstance(given, list) else [given]):
                name, p = p if isinstance(p, tuple) else (f"{i}.{j}", p)
                self._parameters[name] = p  # as it is, leaf or not: what is refused is the optimizer's affair


def takes_params(params: Any) -> dict[str, Any]:
    """The arguments of an optimizer of torch."""
    return {"params": params}


def takes_model(params: Any) -> dict[str, Any]:
    """The arguments of an optimizer that watches a model."""
    params = list(params) if isinstance(params, Iterable) and not isinstance(params, torch.Tensor) else params
    return {"model": Bag(params), "params": params}


@dataclass(frozen=True, repr=False)
class OptimizerInfo:
    """What the tests know about an optimizer, and nothing that could be read off its source.

    Attributes:
        cls: the class.
        oracle: ``oracle(p, g, state, **options) -> (p, state)``.
        whole: the slot that holds the second moment of a tensor that is not factored.
        factors: large tensors keep R and C in place of it.
        bound: the option that bounds a step, or None.
        wrong: options whose value must be refused, beside the common ones.
        wrong_type: options whose type must be refused, beside the common ones.
        variations: the hyper-parameters its rule is compared under.
        arguments: what it takes besides options: ``arguments(params)``, by name.
        first: the names its signature begins with.
        momentum: the option that has the decay of the momentum, and three values: none, one and another.
        rate: ``rate(options, scale)``, see `learning_rate`.
        units: a step does not depend on the unit of the loss.
        kept_apart: the slots that are not in ``state[p]`` but in the record of the optimizer.
        no_backward_steps: why `fisheropt.step_in_backward` refuses it.
    """

    cls: type[torch.optim.Optimizer]
    oracle: Callable[..., Any]
    whole: str = "f"
    factors: bool = False
    bound: str | None = "clip"
    wrong: tuple[Mapping[str, Any], ...] = ()
    wrong_type: tuple[Mapping[str, Any], ...] = ()
    variations: tuple[dict[str, Any], ...] = field(default=({},), repr=False)
    arguments: Callable[[Any], dict[str, Any]] = takes_params
    first: tuple[str, ...] = ("params", "lr", "betas", "eps", "weight_decay")
    momentum: tuple[str, tuple[Any, Any, Any]] = ("betas", ((0.0, 0.9), (0.9, 0.9), (0.5, 0.9)))
    rate: Callable[[Mapping[str, Any], float], float] = field(default=lambda options, scale: 1e-2, repr=False)
    units: bool = True
    kept_apart: frozenset[str] = frozenset()
    no_backward_steps: str = ""

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def fisher(self) -> bool:
        """Whether the metric has an exponent and an adaptive epsilon, and weight decay happens in it."""
        return self.has("rho")

    def has(self, option: str) -> bool:
        """Whether it has an option of this name."""
        return option in inspect.signature(self.cls).parameters

    @property
    def without_momentum(self) -> dict[str, Any]:
        """Options under which there is no momentum."""
        name, (none, *_) = self.momentum
        return {name: none}

    @property
    def with_other_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two sets of options that a group may have for itself."""
        name, (_, _, other) = self.momentum
        return {"lr": 0.02, name: other}, {"weight_decay": 0.1, self.bound or "damping": 0.25}

    @property
    def small(self) -> dict[str, int]:
        """Options under which small tensors are factored, so that a test of a few numbers meets that code."""
        return {"min_dim_size_to_factor": 2} if self.factors else {}

    def build(self, params: Any, **options: Any) -> Any:
        """The optimizer of these parameters, as a user makes it."""
        return self.cls(**self.arguments(params), **options)

    def make(self, params: Any, **options: Any) -> Any:
        """The optimizer, eager unless told otherwise: what is on another backend says so."""
        return self.build(params, **{"backend": "eager", **options})

    def of(self, model: torch.nn.Module, **options: Any) -> Any:
        """The eager optimizer of a model, which it watches if it is one that does."""
        given = model if "model" in self.first else model.parameters()
        return self.cls(given, **{"backend": "eager", **options})

    def admit(self, optimizer: Any, *params: torch.Tensor) -> None:
        """Do what comes before such parameters can be a new group: they become the model's, if there is one."""
        if isinstance(model := getattr(optimizer, "model", None), Bag):
            model._parameters |= {f"{len(model._parameters) + i}": p for i, p in enumerate(params)}

    def slots(self, shape: tuple[int, ...], **options: Any) -> set[str]:
        """The names of what the state of a tensor holds beside its step."""
        size = options.get("min_dim_size_to_factor", 128)
        second = {"R", "C"} if self.factors and factored_dims(shape, size) else {self.whole}
        decay = np.ravel(options.get(self.momentum[0], 0.9))[0]
        return second | ({"m"} if decay > 0 and options.get("momentum", True) else set())

    def per_parameter(self, shape: tuple[int, ...]) -> set[str]:
        """Those of them that are in ``state[p]``."""
        return self.slots(shape) - self.kept_apart

    def __repr__(self) -> str:
        return self.name


def _product(**axes: Any) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


FISHER = (
    *_product(clip=CLIPS, rho=RHOS, weight_decay=(0.1,)),
    {"weight_decay": 0.0},
    {"weight_decay": 0.1, "eps2": None},
    {"weight_decay": 0.1, "eps2": 3.0, "eps": 0.5, "rho": 0.7},
    {"weight_decay": 0.1, "eps": 0.0},
    {"weight_decay": 0.1, "betas": (0.0, 0.999)},
    {"weight_decay": 0.1, "betas": (0.5, 0.0)},
    {"weight_decay": 0.1, "betas": (0.99, 0.5), "rho": 0.3},
)
FACTORED = ({"momentum": False}, {"min_dim_size_to_factor": 4, "weight_decay": 0.0})

NOT_BELOW_ZERO = tuple({name: value} for name in ("lr", "weight_decay") for value in (-1.0, np.nan, np.inf))
BETAS = tuple({"betas": value} for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, np.nan), (0.9, 1.5)))
EPS = tuple({"eps": value} for value in (-1.0, np.nan, np.inf))
COMMON_WRONG = (*NOT_BELOW_ZERO, {"backend": "abacus"}, {"state_dtype": torch.int32}, {"seed": -1})
COMMON_WRONG_TYPE = ({"lr": "fast"}, {"weight_decay": True}, {"maximize": 1})
OF_ADAMS = (*BETAS, *EPS)
OF_ADAMS_TYPE = ({"betas": 0.9}, {"betas": (0.9,)}, {"eps": None})
NO_CLIP = (*OF_ADAMS, {"clip": 0.0}, {"clip": -1.0}, {"clip": np.nan})

DECAYING = (
    {"beta": 0.5, "gammas": (0.5, 0.9), "damping": 0.03, "weight_decay": 0.1},
    {"beta": 0.0, "weight_decay": 0.1, "update_every": 7},
)
WATCHING: dict[str, Any] = {
    "bound": None,
    "wrong": (
        *({"damping": value} for value in (0.0, -1e-3, np.nan, np.inf)),
        *({"beta": value} for value in (1.0, -0.1, np.nan)),
        *({"gammas": value} for value in ((1.0, 0.5), (0.5, 1.0), (-0.1, 0.5), (0.5, np.nan))),
        {"update_every": 0},
        {"normalize": "never"},
    ),
    "wrong_type": ({"beta": None}, {"gammas": 0.8}, {"gammas": (0.8,)}, {"update_every": 1.5}, {"damping": None}),
    "variations": ({}, *DECAYING, {"normalize": "before", "gammas": (0.08, 0.992), "update_every": 3}),
    "arguments": takes_model,
    "first": ("model", "lr", "beta", "gammas", "damping", "weight_decay"),
    "momentum": ("beta", (0.0, 0.9, 0.5)),
    "rate": lambda options, scale: (
        1e-2 * options.get("damping", 1e-3) * (min(1.0, 1 / scale) if options.get("weight_decay") else 1 / scale)
    ),
    "units": False,
    "kept_apart": frozenset({"f"}),
    "no_backward_steps": "its factors are updated once per step, from all layers",
}
"""What AdaFisher and AdaFisherW have in common, in a model without layers: F = minmax(f) + lambda (SPEC D17)."""

OPTIMIZERS = (
    OptimizerInfo(
        FAdam,
        fadam,
        wrong_type=OF_ADAMS_TYPE,
        wrong=(*NO_CLIP, {"rho": 0.0}, {"rho": -0.5}, {"rho": np.nan}, {"eps2": -0.01}, {"eps2": np.nan}),
        variations=FISHER,
    ),
    OptimizerInfo(
        FAdafactor,
        fadafactor,
        factors=True,
        wrong_type=OF_ADAMS_TYPE,
        wrong=(*NO_CLIP, {"rho": 0.0}, {"eps2": -0.01}, {"min_dim_size_to_factor": 0}),
        variations=(*FISHER, *FACTORED),
    ),
    OptimizerInfo(
        Adam,
        adam,
        wrong_type=OF_ADAMS_TYPE,
        wrong=NO_CLIP,
        variations=(
            *_product(clip=CLIPS, weight_decay=(0.0, 0.1)),
            {"betas": (0.0, 0.999)},
            {"betas": (0.5, 0.0)},
            {"betas": (0.99, 0.5), "eps": 0.5},
        ),
    ),
    OptimizerInfo(
        Adafactor,
        adafactor,
        factors=True,
        wrong_type=OF_ADAMS_TYPE,
        wrong=(*NO_CLIP, {"min_dim_size_to_factor": 0}),
        variations=(
            *_product(clip=CLIPS, weight_decay=(0.0, 1e-3)),
            {"betas": (0.0, 0.999)},
            {"betas": (0.5, 0.0)},
            {"betas": (0.99, 0.5), "eps": 0.5},
            *FACTORED,
        ),
    ),
    OptimizerInfo(
        NaturalAdam,
        naturaladam,
        whole="s",
        bound="max_norm",
        wrong_type=OF_ADAMS_TYPE,
        wrong=(*OF_ADAMS, {"max_norm": 0.0}, {"max_norm": np.nan}, {"eps_decay": -1.0}),
        variations=(
            *_product(max_norm=(0.5, 1.0, 10.0, None), weight_decay=(0.0, 0.1)),
            {"betas": (0.0, 0.999)},
            {"betas": (0.5, 0.0), "eps_decay": 0.0},
            {"betas": (0.99, 0.5), "eps": 0.5, "eps_decay": 0.3},
        ),
    ),
    OptimizerInfo(AdaFisher, adafisher, **WATCHING),
    # without weight decay it is AdaFisher
    OptimizerInfo(AdaFisherW, adafisherw, **WATCHING | {"variations": ({}, *DECAYING)}),
)
INFO = {info.name: info for info in OPTIMIZERS}


SLOW = {"compile": "each dtype, rank and set of options compiles for seconds; rules/test_compile.py runs a few"}
"""Backends that the whole table would be too slow for -> why, and where they are tested instead."""


def _has(info: OptimizerInfo, backend: str) -> bool:
    """Whether this machine and this rule have the backend: so a new kernel meets every test unasked."""
    try:
        info.make([torch.zeros(1), torch.zeros(2, 2)], backend=backend, **info.small)
    except BackendUnavailableError:
        return False
    return True


def _described(options: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}".replace(" ", "") for name, value in options.items()) or "defaults"


RULES = tuple(
    (info, backend)
    for info in OPTIMIZERS
    for backend in BACKENDS
    if backend != "auto" and backend not in SLOW and _has(info, backend)
)


def _rules(which: Callable[[OptimizerInfo], bool]) -> Any:
    chosen = [(info, backend) for info, backend in RULES if which(info)]
    return pytest.mark.parametrize(
        ("info", "backend"), [pytest.param(info, backend, id=f"{info}-{backend}") for info, backend in chosen]
    )


each_optimizer = pytest.mark.parametrize("info", OPTIMIZERS, ids=str)
each_in_backward = pytest.mark.parametrize(
    "info",
    [
        pytest.param(
            info, id=str(info), marks=[pytest.mark.skip(info.no_backward_steps)] * bool(info.no_backward_steps)
        )
        for info in OPTIMIZERS
    ],
)
each_rule = _rules(lambda info: True)
each_fisher_rule = _rules(lambda info: info.fisher)
each_rule_with_eps = _rules(lambda info: info.has("eps"))
each_variation = pytest.mark.parametrize(
    ("info", "backend", "variation"),
    [
        pytest.param(info, backend, options, id=f"{info}-{backend}-{_described(options)}")
        for info, backend in RULES
        for options in info.variations
    ],
)
each_exact_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


# -- numbers to run them on --------------------------------------------------------------------------------------------


def gradients(shape: tuple[int, ...], *, scale: float, steps: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """``steps`` gradients of either sign, whose sizes span three orders of magnitude around ``scale``.

    Log-normal and not normal: an element near zero would, in the first step, be one whose metric is near zero, and
    without a clip its decay would drown the rest of the tensor, mistakes included.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    size = torch.empty((steps, *shape), dtype=torch.float64).log_normal_(0.0, 1.0, generator=generator)
    sign = torch.randint(0, 2, size.shape, generator=generator) * 2 - 1
    return (scale * size * sign).to(dtype)


def parameter(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """A parameter with elements of the order of one."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def learning_rate(info: OptimizerInfo, options: Mapping[str, Any], scale: float) -> float:
    """A learning rate under which 20 steps move a parameter by about its own size, whatever the gradient's scale.

    Where nothing bounds a step or the decay, they go with a power of the scale: a fixed rate would be a test
    of nothing at one end and leave float32 at the other.
    """
    unbounded = options.get("clip", 1.0) is None
    if unbounded and "rho" in options:
        return 1e-3 * scale ** (2 * options["rho"] - 1) * min(1.0, scale)
    if "max_norm" in options and options["weight_decay"]:  # NaturalAdam's decay is never clipped
        return 1e-2 * min(1.0, scale)
    return info.rate(options, scale)


def train(optimizer: torch.optim.Optimizer, grads: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """One step per row of ``grads``: parameter -> (steps, *shape)."""
    for rows in zip(*(grad.unbind(0) for grad in grads.values()), strict=True):
        for p, g in zip(grads, rows, strict=True):
            p.grad = g.clone()
        optimizer.step()


def oracle_run(
    info: OptimizerInfo, p: torch.Tensor, grads: torch.Tensor, oracle: Callable[..., Any] | None = None, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Where the oracle (or another one) takes ``p``, from exactly the numbers the library gets."""
    if not options.pop("momentum", True):
        options["betas"] = (0.0, options.get("betas", (0.9, 0.999))[1])
    value, state = p.detach().double().numpy(), None
    for g in grads.double().numpy():
        value, state = (oracle or info.oracle)(value, g, state, **options)
    return value, state


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Largest error over largest reference, per tensor; 0 for two tensors of zeros, inf for a NaN or another shape."""
    if tuple(actual.shape) != expected.shape:
        return float("inf")
    error = np.max(np.abs(actual.detach().double().numpy() - expected), initial=0.0)
    if not np.isfinite(error):
        return float("inf")
    return 0.0 if error == 0.0 else float(error / max(np.max(np.abs(expected), initial=0.0), np.finfo(float).tiny))


def state_of(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an optimizer keeps for a parameter, wherever it keeps it."""
    state = dict(optimizer.state.get(p, {}))
    for group in optimizer.param_groups:
        for name, q in zip(group.get("param_names", ()), group["params"], strict=False):
            if q is p:
                factors = optimizer.state.get("fisher", {"factors": {}})["factors"].get(name, {})
                state |= {letter: value for letter, value in factors.items() if letter != "updates"}
    return state


def numbers(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> list[torch.Tensor]:
    """A parameter and its state by name, as copies."""
    return [p.detach().clone(), *(x.detach().clone() for _, x in sorted(state_of(optimizer, p).items()))]


def snapshot(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every number the optimizer has: those of each parameter, then what it counts for all of them."""
    tensors = [x for group in optimizer.param_groups for p in group["params"] for x in numbers(optimizer, p)]
    record = optimizer.state.get("fisher", {"factors": {}})
    counts = [n for n in (record.get("steps"), *(known["updates"] for known in record["factors"].values())) if n]
    return [*tensors, *map(torch.tensor, counts)]


def same_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Equal dtypes, shapes and values in every tensor, and as many tensors. NaN is never the same."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )
