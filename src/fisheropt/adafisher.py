r"""AdaFisher: momentum preconditioned by a Kronecker-factored diagonal of the Fisher information matrix.

Source: Martins Gomes, Zhang, Belilovsky, Wolf, Hosseini, *AdaFisher: Adaptive Second Order Optimization via Fisher
Information*, ICLR 2025, arXiv:2405.16397, Algorithm 1. For a layer with input h, a 1 appended where it has a bias, and
gradient s of the loss with respect to its output, with m_0 = 0::

    Hhat   = mean over units and positions of h^2                         per input feature
    Shat   = mean over units and positions of s^2                         per output feature
    H      = gamma1 H + (1 - gamma2) Hhat                                 when factors are due
    S      = gamma1 S + (1 - gamma2) Shat
    H'     = minmax(H) ;  S' = minmax(S)                                  (x - min)/(max - min)
    F      = S' outer H' + lambda                                         shape (out, in [+1])
    g      = g + kappa theta                                              AdaFisher only
    m      = beta m + (1 - beta) g
    mhat   = m / (1 - beta^t)
    theta  = theta - eta mhat / F                                         AdaFisher
    theta  = theta - eta (mhat / F + kappa theta)                         AdaFisherW

======  ================  ====================  =====================================================================
symbol  argument          shape                 meaning, unit and range
======  ================  ====================  =====================================================================
theta   ``p``             that of p             parameter
g       ``g``             that of p             gradient of the loss, in [loss]/[p]
t       ``step``          0-d                   step of this tensor, from 1
m       ``m``             that of p             momentum over the gradient, in [loss]/[p]
S'      ``rows``          (layers, ...)         in [0, 1], without unit; here in p's own orientation, see below
H'      ``columns``       (layers, ...)         in [0, 1], without unit; the product with rows broadcasts to p
F       none              that of p             in [lambda, 1 + lambda] for one layer
eta     ``lr``            scalar                length of a step: moves p by between eta |mhat| and eta |mhat| / lambda
beta    ``beta``          scalar                decay of m, in [0, 1); 0 keeps no momentum
gamma   ``gammas``        pair of scalars       decay of H and S, and one minus the weight of what is new, in [0, 1)
lambda  ``damping``       scalar                smallest value of F, > 0
kappa   ``weight_decay``  scalar                >= 0; into the gradient (AdaFisher) or beside the step (AdaFisherW)
======  ================  ====================  =====================================================================

The pure rule begins where F is formed; `fisheropt.fisher` has what comes before. There is no square root of F: eta is
in units of [p]^2/[loss], as SGD's, and where F = lambda the step is that of momentum SGD with learning rate eta/lambda.

A parameter of several layers has the sum of their S' outer H', one of no layer (norms, bare ones) F = minmax(EMA of
g^2) + lambda. The module docstring of `fisheropt.fisher.curvature` says which is which.

Deviations from the printed algorithm:

1. The authors' published script takes minmax before the moving average, of which it makes something else
   (``normalize="before"``, SPEC D14).
2. minmax is 1 where all elements are equal (D15).
3. m is corrected when it is read, and stored uncorrected (D12).
4. Norms, bare parameters and uncalled layers, of which the paper says little or nothing, are as in D17.
5. What would leave the range of its dtype, a g^2 or an mhat / F, saturates at its end (D5).

Cost: 4 bytes of state per float32 parameter (m), 8 (in + out) per layer, and per parameter without a layer 4 more (f).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fisheropt._curvature_optimizer import CurvatureOptimizer
from fisheropt._math import bias_correction
from fisheropt._optimizer import ParamsT
from fisheropt._state import Options, Rule, Slot, StateDtype
from fisheropt.fisher.curvature import Normalize

__all__ = ["ADAFISHER", "ADAFISHERW", "AdaFisher", "AdaFisherW", "adafisher"]


def adafisher(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    m: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    *,
    lr: float | Tensor,
    beta: float,
    damping: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """AdaFisher or, decoupled, AdaFisherW: one step of one tensor, in place. Symbols: the table of this module."""
    F = torch.addcmul(rows.new_full((), damping), rows[0], columns[0])
    for r in range(1, rows.shape[0]):  # several layers (D18)
        F.addcmul_(rows[r], columns[r])
    if weight_decay != 0 and not decoupled:
        g = g + p * weight_decay
    m = g if m is None else m.mul_(beta).add_(g, alpha=1 - beta)
    if isinstance(lr, Tensor):
        lr = lr.reshape(())  # it may have a dimension where p has none
    eta = lr / bias_correction(beta, step)  # deviation 3: the correction that makes m mhat
    largest = torch.finfo(p.dtype).max
    move = torch.div(m, F, out=F).clamp_(-largest, largest).mul_(eta)  # deviation 5
    if weight_decay != 0 and decoupled:
        move.add_(p * (lr * weight_decay))
    p.sub_(move)


def _needs_momentum(options: Options) -> bool:
    return bool(options["beta"] > 0.0)


_SLOTS = (Slot("m", "momentum over the gradient", signed=True, needed=_needs_momentum),)
ADAFISHER = Rule(adafisher, _SLOTS, shaped=True, local=True, declared={"decoupled": False})
ADAFISHERW = Rule(adafisher, _SLOTS, shaped=True, local=True, declared={"decoupled": True})


class _AdaFisher(CurvatureOptimizer):
    """What AdaFisher and AdaFisherW have in common, which is everything but the decay. Abstract."""

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 1e-3,
        beta: float = 0.9,
        gammas: tuple[float, float] = (0.8, 0.8),
        damping: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        update_every: int = 1,
        normalize: Normalize = "after",
        params: ParamsT | None = None,
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        loss_scale: float | Callable[[], float] | None = None,
    ) -> None:
        super().__init__(
            model,
            params,
            {
                "lr": lr,
                "beta": beta,
                "gammas": gammas,
                "damping": damping,
                "weight_decay": weight_decay,
                "update_every": update_every,
                "normalize": normalize,
                "maximize": maximize,
                "backend": backend,
                "state_dtype": state_dtype,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
            loss_scale,
        )


class AdaFisher(_AdaFisher):
    r"""Implements AdaFisher (Martins Gomes et al. 2025, arXiv:2405.16397, Algorithm 1).

    Momentum divided by :math:`F`, a Kronecker-factored diagonal of the Fisher information that is collected from the
    layers of the model while it trains. Weight decay is added to the gradient; `AdaFisherW` decouples it.

    Args:
        model: the model, whole or sharded by `fully_shard`, or a `DistributedDataParallel` of it. Its layers get hooks,
            until `close`. Compile it, if at all, after building the optimizer.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element. Where :math:`F` is at its damping the
            step is that of momentum SGD with :math:`\eta/\lambda`, so it is about :math:`\lambda` times SGD's.
        beta: decay of the momentum, in [0, 1). 0 keeps none.
        gammas: :math:`(\gamma_1, \gamma_2)` of the moving average of the factors,
            :math:`H = \gamma_1 H + (1 - \gamma_2) \hat H`, each in [0, 1).
        damping: :math:`\lambda > 0`, added to the normalised Fisher information, which is in [0, 1].
        weight_decay: :math:`\kappa \ge 0`.
        update_every: factors are updated in the first step and every so many steps after it, >= 1. Between, hooks do
            nothing.
        normalize: ``"after"`` takes minmax of the moving averages, as the paper; ``"before"`` takes moving averages of
            minmaxes, as the authors' script, which is this with ``gammas=(0.08, 0.992)`` and ``update_every=100``. The
            averages of one mean nothing to the other: not to be changed during training.
        params: parameters of the model to train, or groups of them. None: all. What the model is given later can be
            added with ``add_param_group``.
        maximize: ascend instead of descend.
        backend: ``"auto"``, ``"eager"``, ``"compile"`` or ``"numba"`` (CPU).
        state_dtype: how the momentum is kept; as in `FAdam`.
        stochastic_rounding: round bfloat16 parameters stochastically; as in `FAdam`.
        seed: of the stochastic rounding, in [0, 2^32). The same on every rank.
        loss_scale: by which the loss is multiplied before ``backward``, or a function that says so when asked in a
            step. None: what ``torch.amp.GradScaler.step`` says, and 1 without. Needed only if the loss is scaled by
            other means, or if ``GradScaler.unscale_`` is called before the step: ``loss_scale=scaler.get_scale``.

    Raises:
        ValueError: an option is out of its range, a group has an unknown option, a parameter appears twice or is not
            the model's, or the model is compiled already or has parameters without a shape.
        TypeError: ``model`` is no module, or is sharded by something else than `fully_shard`, a parameter is
            complex, or (at `step`) a gradient is sparse.

    The gradient of the loss is that of the step: with k micro-batches the loss of each is divided by k, and then they
    give the step of one batch. Calls in eval mode are not counted; a layer that is never called in training mode is
    treated as a bare parameter.

    State: per parameter ``step`` (int64) and ``m`` in its shape; in ``optimizer.state["fisher"]`` the number of
    ``steps``, and the ``factors`` by parameter name.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fisheropt.AdaFisher(model, lr=1e-3)
        >>> model(torch.eye(4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.curvature_summary()["weight"].kind
        'kronecker'
    """

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        return ADAFISHER


class AdaFisherW(_AdaFisher):
    r"""Implements AdaFisherW: `AdaFisher` with decoupled weight decay, :math:`-\eta \kappa \theta` beside the step.

    Arguments, errors and state are those of `AdaFisher`.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fisheropt.AdaFisherW(model, lr=1e-3, weight_decay=0.01)
        >>> model(torch.eye(4)).square().mean().backward()
        >>> optimizer.step()
    """

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        return ADAFISHERW
