"""FAdafactor: FAdam with the Fisher information of a matrix kept as row and column sums.

Source: Hwang, arXiv:2405.12807, Algorithm 2. For a matrix theta of n rows and k columns, with R_0 = 1 and C_0 = 1::

    g      = gradient of the loss                                         line 5
    b2hat  = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)                      line 6
    R      = b2hat R + (1 - b2hat) (row sums of g^2)                      line 7
    C      = b2hat C + (1 - b2hat) (column sums of g^2)                   line 8
    f      = outer(R, C) / sum(R)                                         line 9
    then lines 8 to 14 of Algorithm 1 (`fisheropt.fadam`) with this f

======  ===============  ===============  ===========================================================================
symbol  argument         shape            meaning, unit and range
======  ===============  ===============  ===========================================================================
theta   ``p``            (..., n, k)      parameter; leading dimensions are a batch of matrices
R       ``R``            (..., n)         Fisher information summed over the columns, [loss]^2/[p]^2, >= 0
C       ``C``            (..., k)         Fisher information summed over the rows, [loss]^2/[p]^2, >= 0
others                                    as in `fisheropt.fadam`
======  ===============  ===============  ===========================================================================

Which tensors are factored: those of two and more dimensions whose second-largest is at least
``min_dim_size_to_factor``, over their two largest dimensions (SPEC D10). The others follow Algorithm 1 exactly.

Deviations from the printed algorithm: those of `fisheropt.fadam`, and sum(R) = 0 gives f = 0 (SPEC D11).

Cost: n + k numbers for f instead of n k, and a momentum of n k numbers unless it is switched off: 4 bytes of state
per float32 parameter with momentum, close to 0 without.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fisheropt._math import debiased, outer_fisher, row_and_column_sums, square
from fisheropt._microbatch import MicrobatchOptimizer
from fisheropt._optimizer import ParamsT, options_given
from fisheropt._state import Options, Rule, Slot, StateDtype, factored_dims, needs_momentum
from fisheropt.fadam import FADAM, FADAM_MICROBATCH, natural_descent

__all__ = ["FADAFACTOR", "FAdafactor", "fadafactor"]


def fadafactor(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    R: Tensor,
    C: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """FAdafactor, Algorithm 2: one step of one matrix, or batch of matrices, in place."""
    beta1, beta2 = betas
    b2hat, one_minus_b2hat = debiased(beta2, step)  # line 6
    row_sums, column_sums = row_and_column_sums(square(g))
    R.mul_(b2hat).add_(row_sums.mul_(one_minus_b2hat))  # line 7
    C.mul_(b2hat).add_(column_sums.mul_(one_minus_b2hat))  # line 8
    f = outer_fisher(R, C)  # line 9
    natural_descent(p, g, f, m, lr=lr, beta1=beta1, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay)


def fadafactor_microbatch(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    R: Tensor,
    C: Tensor,
    m: Tensor | None,
    q: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """FAdafactor with Equation 20: lines 7 and 8 take the sums of q in place of g^2."""
    beta1, beta2 = betas
    b2hat, one_minus_b2hat = debiased(beta2, step)  # line 6
    row_sums, column_sums = row_and_column_sums(q)
    R.mul_(b2hat).add_(row_sums.mul_(one_minus_b2hat))  # line 7 with Equation 20
    C.mul_(b2hat).add_(column_sums.mul_(one_minus_b2hat))  # line 8 with Equation 20
    f = outer_fisher(R, C)  # line 9
    natural_descent(p, g, f, m, lr=lr, beta1=beta1, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay)


FADAFACTOR = Rule(
    fadafactor,
    slots=(
        Slot("R", "Fisher information summed over the columns", init=1.0, summed_over="columns"),
        Slot("C", "Fisher information summed over the rows", init=1.0, summed_over="rows"),
        Slot("m", "momentum over the natural gradient", signed=True, needed=needs_momentum),
    ),
    factored=True,
)

FADAFACTOR_MICROBATCH = Rule(fadafactor_microbatch, FADAFACTOR.slots, factored=True)


class FAdafactor(MicrobatchOptimizer):
    r"""Implements FAdafactor (Hwang 2024, arXiv:2405.12807, Algorithm 2): FAdam in the memory of Adafactor.

    A matrix of n rows and k columns keeps n + k numbers of Fisher information instead of n k; vectors, and matrices
    with a small side, follow FAdam.

    Args:
        params: iterable of parameters, of ``(name, parameter)`` pairs, or of dicts that define parameter groups.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element.
        betas: decays :math:`(\beta_1, \beta_2)` of momentum and Fisher information, each in [0, 1).
        eps: upper bound of the adaptive epsilon, in units of the gradient, >= 0.
        weight_decay: :math:`\lambda \ge 0`, in the Fisher metric and scaled by the learning rate, as in `FAdam`.
        eps2: the epsilon is ``min(eps, eps2 * rms(g))``; None makes it the constant ``eps``.
        clip: bound :math:`c > 0` on the root mean square of a tensor's natural gradient and of its decay; None:
            no bound.
        rho: exponent :math:`\rho > 0` of the metric.
        momentum: False keeps no momentum and allocates none, as does ``betas[0] = 0``.
        min_dim_size_to_factor: a tensor is factored if its second-largest dimension has at least this size, >= 1.
        fisher: what f averages. ``"batch"``: the square of the gradient of a step, as printed. ``"microbatch"``
            (Equation 20): the mean of the squares of the gradients that the backward passes of a step bring, over
            data-parallel processes too; costs 4 bytes per parameter between backward and step, and runs eagerly.
        maximize: ascend instead of descend.
        backend: ``"auto"``, ``"eager"``, ``"compile"``, ``"numba"`` (CPU) or ``"triton"`` (CUDA).
        state_dtype: how state is kept. None: in float32, or float64 for float64 parameters. ``torch.bfloat16``: 2 bytes
            per number. ``"int8"``: 1 byte and a scale per block of 128, for tensors of 4096 elements and more. The
            small ones round stochastically; the rule itself runs in float32 all the same.
        stochastic_rounding: round bfloat16 parameters stochastically, so that steps smaller than half the distance of
            two of their numbers are not lost.
        seed: of the stochastic rounding, in [0, 2^32). The same on every rank.

    Raises:
        ValueError: an option is out of its range, a group has an unknown option, or a parameter appears twice.
        TypeError: a parameter is no tensor, is complex, or (at `step`) has a sparse gradient.

    State per parameter: ``step`` (int64), ``m`` in the shape of the parameter, and either ``R`` (its shape without
    the column dimension) and ``C`` (without the row dimension) or ``f`` in its shape.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(256, 512)
        >>> optimizer = fisheropt.FAdafactor(model.parameters(), lr=1e-3, momentum=False)
        >>> model(torch.ones(1, 256)).square().mean().backward()
        >>> optimizer.step()
        >>> {name: tuple(slot.shape) for name, slot in optimizer.state[model.weight].items()}
        {'step': (), 'R': (512,), 'C': (256,)}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        *,
        eps2: float | None = 0.01,
        clip: float | None = 1.0,
        rho: float = 0.5,
        momentum: bool = True,
        min_dim_size_to_factor: int = 128,
        fisher: Literal["batch", "microbatch"] = "batch",
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, options_given(locals()))

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        factored = factored_dims(shape, options["min_dim_size_to_factor"])
        if options["fisher"] == "batch":
            return FADAM if factored is None else FADAFACTOR
        return FADAM_MICROBATCH if factored is None else FADAFACTOR_MICROBATCH
