"""Does the comparison see a one-line mistake? Each line below is one that was made somewhere, or easily could be.

The oracle's source is changed in one place and the library compared with the result by the very functions, cases and
tolerance of test_rules.py. A mistake that no case shows would be one that the suite lets through.
"""

import importlib
import inspect
import types

import numpy as np
import pytest
import torch
from tests.cases import INFO, MATRICES, TOLERANCE
from tests.rules.against import beyond, run

LINES_10_TO_12 = """\
    gbar = clipped(quotient(g, denominator), clip)
    m = betas[0] * m + (1.0 - betas[0]) * gbar
"""

FADAM = {
    "momentum before the metric": (
        LINES_10_TO_12,
        """\
    m = betas[0] * m + (1.0 - betas[0]) * g
    gbar = clipped(quotient(m, denominator), clip)
""",
    ),
    "clip by max(1, rms) / c": ("max(1.0, rms(x) / c)", "(max(1.0, rms(x)) / c)"),
    "clip by the norm": ("np.sqrt(np.mean(", "np.sqrt(np.sum("),
    "clip per component": ("x / max(1.0, rms(x) / c)", "np.clip(x, -c, c)"),
    "clip the momentum instead": (
        LINES_10_TO_12,
        """\
    gbar = quotient(g, denominator)
    m = clipped(betas[0] * m + (1.0 - betas[0]) * gbar, clip)
""",
    ),
    "correct the momentum": (
        "new = new_share(betas[1], t)\n",
        "new = new_share(betas[1], t)\n    lr /= 1 - betas[0]**t\n",
    ),
    "correct f a second time": ("+ new * mean_square(g, parts)", "+ new * mean_square(g, parts) / (1.0 - betas[1]**t)"),
    "leave f uncorrected": ("new = new_share(betas[1], t)", "new = 1.0 - betas[1]"),
    "count steps from zero": ('t = state["step"] + 1\n', 't = max(1, state["step"])\n'),
    "average |g| instead of its square": ("new * mean_square(g, parts)", "new * np.abs(g)"),
    "forget rho in the metric": ("f**rho", "f**0.5"),
    "forget rho in the epsilon": ("ehat ** (2.0 * rho)", "ehat"),
    "epsilon not squared": ("ehat ** (2.0 * rho)", "ehat ** rho"),
    "epsilon inside the power": ("f**rho + ehat ** (2.0 * rho)", "(f + ehat**2) ** rho"),
    "the larger epsilon": ("min(eps, eps2", "max(eps, eps2"),
    "a constant epsilon": ("eps if eps2 is None else min(eps, eps2 * rms(g))", "eps"),
    "epsilon from the largest gradient": ("eps2 * rms(g)", "eps2 * np.max(np.abs(g), initial=0.0)"),
    "decay outside the metric": ("gw = clipped(quotient(p, denominator), clip)", "gw = p"),
    "decay unclipped": ("gw = clipped(quotient(p, denominator), clip)", "gw = quotient(p, denominator)"),
    "decay not scaled by lr": ("p - lr * (m + weight_decay * gw)", "p - lr * m - weight_decay * gw"),
    "decay inside the gradient": (
        "g = np.asarray(p, np.float64), np.asarray(g, np.float64)",
        "g = p, g + weight_decay * p",
    ),
    "decay of the moved parameter": ("quotient(p, denominator)", "quotient(p - lr * m, denominator)"),
    "ascend": ("p - lr *", "p + lr *"),
}
FADAFACTOR = {
    "rows and columns exchanged": (
        "return None if min(shape[row]",
        "row, column = column, row\n    return None if min(shape[row]",
    ),
    "means instead of sums": ("new * np.sum(g2, axis=column)", "new * np.mean(g2, axis=column)"),
    "no outer sum": ("quotient(R, np.sum(R, axis=row, keepdims=True)) * C", "R * C"),
    "one sum for the whole batch": ("np.sum(R, axis=row, keepdims=True)", "np.sum(R)"),
    "always the last two dimensions": ("sorted(by_size[-2:])", "(len(shape) - 2, len(shape) - 1)"),
    "ties to the earlier dimensions": ("(shape[dim], dim)", "(shape[dim], -dim)"),
    "the largest dimension decides": ("min(shape[row], shape[column])", "max(shape[row], shape[column])"),
    "C not corrected": ('(1.0 - new) * state["C"] + new *', 'betas[1] * state["C"] + (1 - betas[1]) *'),
}
ADAM = {
    "feed the corrected f back": ('{"step": t, "f": f, "m": m}', '{"step": t, "f": fhat, "m": m}'),
    "leave m uncorrected": ("m / (1.0 - beta1**t)", "m"),
    "leave f uncorrected": ("f / (1.0 - beta2**t)", "f"),
    "epsilon inside the root": ("np.sqrt(fhat) + eps", "np.sqrt(fhat + eps)"),
    "decay not scaled by lr": ("lr * (update + weight_decay * p)", "lr * update - weight_decay * p"),
    "decay inside the clip": (
        "update = clipped(",
        "update = (lambda u, c: clipped(u + weight_decay * p, c) - weight_decay * p)(",
    ),
    "no clip": ("clipped(quotient(mhat, np.sqrt(fhat) + eps), clip)", "quotient(mhat, np.sqrt(fhat) + eps)"),
}
ADAFACTOR = {
    "decay scaled by lr": ("- weight_decay * p", "- lr * weight_decay * p"),
    "momentum without lr": ("(1.0 - betas[0]) * lr * u", "(1.0 - betas[0]) * u"),
    "lr when the momentum is read": (
        "(1.0 - betas[0]) * lr * u\n    return p - m",
        "(1.0 - betas[0]) * u\n    return p - lr * m",
    ),
    "no epsilon": ("g**2 + eps", "g**2"),
    "epsilon outside the average": ("quotient(g, np.sqrt(f))", "quotient(g, np.sqrt(f) + eps)"),
    "no clip": ("clipped(quotient(g, np.sqrt(f)), clip)", "quotient(g, np.sqrt(f))"),
    "leave f uncorrected": ("new = new_share(betas[1], t)", "new = 1.0 - betas[1]"),
}
NATURALADAM = {
    "epsilon constant": ("eps / (1.0 + eps_decay * t)", "eps"),
    "epsilon a step late": ("eps_decay * t)", "eps_decay * (t - 1))"),
    "norm of the mean": ("rms(d) * np.sqrt(d.size)", "rms(d)"),
    "bound the decay too": (
        "return p - lr * d - lr * weight_decay * quotient(p, denominator), ",
        "w = weight_decay * quotient(p, denominator)\n    "
        "return p - lr * d - lr * w / max(1.0, rms(w) * np.sqrt(w.size) / (max_norm or np.inf)), ",
    ),
    "decay outside the metric": ("weight_decay * quotient(p, denominator)", "weight_decay * p"),
    "leave m uncorrected": ("m / (1.0 - beta1**t)", "m"),
    "leave s uncorrected": ("s / (1.0 - beta2**t)", "s"),
}
ADAFISHER = {
    "no damping": ('return (minmax(f) if normalize == "after" else f) + damping', "return minmax(f) + 1e-9"),
    "the root of the metric": ("mhat / F + weight_decay * p if decoupled else mhat / F", "mhat / np.sqrt(F)"),
    "leave m uncorrected": ("m / (1.0 - beta**t)", "m"),
    "minmax at the wrong end": ("x = np.asarray(x, np.float64)\n", "x = -np.asarray(x, np.float64)\n"),
    "an average that starts at zero": ('1.0 if normalize == "before" else 0.0', "0.0"),
    "one gamma for both": ("(1.0 - gammas[1]) * new", "(1.0 - gammas[0]) * new"),
    "factors too often": ("(t - 1) % update_every == 0", "(t - 1) % update_every <= 1"),
    "decay of the other kind": ("if not decoupled:\n        g =", "if decoupled:\n        g ="),
    "ascend": ("p - lr * step", "p + lr * step"),
}
MISTAKES = {
    "FAdam": FADAM,
    "FAdafactor": FADAFACTOR,
    "Adam": ADAM,
    "Adafactor": ADAFACTOR,
    "NaturalAdam": NATURALADAM,
    "AdaFisher": ADAFISHER,
    "AdaFisherW": {"decay unscaled": ("p - lr * step", "p - lr * mhat / F - weight_decay * p")},
}


def mistaken(oracle, right, mistake):
    """The oracle with one place of its module changed. What it imports from other oracles stays right."""
    module = importlib.import_module(oracle.__module__)
    source = inspect.getsource(module)
    assert source.count(right) == 1, "a mutation must change one place, or it tests something else than it says"
    changed = types.ModuleType(f"mistaken_{oracle.__name__}")
    exec(compile(source.replace(right, mistake), changed.__name__, "exec"), changed.__dict__)
    return getattr(changed, oracle.__name__)


@pytest.fixture(scope="module")
def trained():
    """Cases of the library in float32, the harder dtype to see anything in; they are the same for every mistake."""
    scales, shapes = (1e-8, 1.0, 1e4), ((7,), (5, 2, 3), *MATRICES)
    return {
        name: [
            case
            for variation in info.variations
            for case in run(info, scales, lambda _: shapes, dtype=torch.float32, steps=4, **(info.small | variation))
        ]
        for name, info in INFO.items()
    }


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_a_one_line_mistake_is_seen(trained, name, mistake):
    oracle = mistaken(INFO[name].oracle, *MISTAKES[name][mistake])
    with np.errstate(all="ignore"):  # a mistake may well overflow
        assert beyond(100 * TOLERANCE[torch.float32], trained[name], oracle=oracle)


def test_the_unchanged_oracle_sees_none(trained):
    """Or the test above would prove nothing."""
    for cases in trained.values():
        assert not beyond(TOLERANCE[torch.float32], cases)
