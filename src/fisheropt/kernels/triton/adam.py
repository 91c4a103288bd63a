"""Adam (Algorithm 3) for all tensors of a model in four launches: the formulas and letters of `fisheropt.baselines`.

prepare   1 - beta1^t and 1 - beta2^t                   a program per tensor
gather    sums of u^2                                   a program per chunk; reads g, f, m
resolve   the clip of u                                 a program per tensor
apply     m, f, u and theta                             a program per chunk; reads p, g, f, m and writes p, f, m
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton._compile import device, kernel
from fisheropt.kernels.triton._memory import load, store
from fisheropt.kernels.triton._numbers import (
    argument,
    as_bits,
    bias_correction,
    exponent,
    number,
    quotient,
    square,
    wide,
)
from fisheropt.kernels.triton._plan import NUMBERS, plans, supports, touched
from fisheropt.kernels.triton._sums import span
from fisheropt.kernels.triton.fadam import GBAR, GBAR2, resolve

__all__ = ["adam", "adam_many", "supports"]

_P, _G, _STEP, _F, _M = (tl.constexpr(row) for row in range(5))  # rows of addresses
_FIRST, _SECOND = (tl.constexpr(n) for n in range(2))  # of a tensor's numbers: the corrections of m and of f


@device
def _update(  # type: ignore[no-untyped-def]
    g, f, m, beta1, one_minus_beta1, beta2, one_minus_beta2, first, second, eps, MOMENTUM: tl.constexpr
):  # fmt: skip
    """The new f and m, and u before it is clipped."""
    m = beta1 * m + one_minus_beta1 * g if MOMENTUM else g
    f = beta2 * f + one_minus_beta2 * square(g)
    mhat = tl.div_rn(m, first) if MOMENTUM else g
    return f, m, quotient(mhat, tl.sqrt_rn(tl.div_rn(f, second)) + eps)


@kernel
def _prepare(addresses, sizes, first, numbers, tensors, chunks, beta1, beta2):  # type: ignore[no-untyped-def]
    tensor = tl.program_id(0)
    step = tl.load(tl.load(addresses + _STEP * tensors + tensor).to(tl.pointer_type(tl.int64)))
    mine = numbers + tensor * NUMBERS
    tl.store(mine + _FIRST, bias_correction(wide(beta1), step))
    tl.store(mine + _SECOND, bias_correction(wide(beta2), step))


@device
def _look(  # type: ignore[no-untyped-def]
    g_, f_, m_, tile, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, first, second, eps, u2,
    FULL: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """A tile's part in the sum, in float64."""
    i = tile + tl.arange(0, TILE)
    g = load(g_, i, stop, FULL, G, ALIGNED)
    f = load(f_, i, stop, FULL, "float32", ALIGNED)
    m = g
    if MOMENTUM:
        m = load(m_, i, stop, FULL, "float32", ALIGNED)
    f, m, u = _update(g, f, m, beta1, one_minus_beta1, beta2, one_minus_beta2, first, second, eps, MOMENTUM)
    return u2 + u.to(tl.float64) * u.to(tl.float64)


@device
def _step(  # type: ignore[no-untyped-def]
    p_, g_, f_, m_, tile, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, first, second, eps, clip, eta, decay,
    FULL: tl.constexpr, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """A tile's step."""
    i = tile + tl.arange(0, TILE)
    p = load(p_, i, stop, FULL, P, ALIGNED)
    g = load(g_, i, stop, FULL, G, ALIGNED)
    f = load(f_, i, stop, FULL, "float32", ALIGNED)
    m = g
    if MOMENTUM:
        m = load(m_, i, stop, FULL, "float32", ALIGNED)
    f, m, u = _update(g, f, m, beta1, one_minus_beta1, beta2, one_minus_beta2, first, second, eps, MOMENTUM)
    if CLIP:
        u = tl.div_rn(u, clip)
    if DECAY:
        u = u + decay * p
    if MOMENTUM:
        store(m_, i, stop, m, FULL, "float32", ALIGNED)
    store(f_, i, stop, f, FULL, "float32", ALIGNED)
    store(p_, i, stop, p - eta * u, FULL, P, ALIGNED)


@kernel
def _gather(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, chunks, partial, beta1, beta2, eps,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    tensor, start, stop = span(chunk, owner, first, sizes, CHUNK)
    mine = numbers + tensor * NUMBERS
    correction, second = number(mine + _FIRST), number(mine + _SECOND)
    one_minus_beta1, one_minus_beta2 = (1.0 - wide(beta1)).to(tl.float32), (1.0 - wide(beta2)).to(tl.float32)
    beta1, beta2, eps = number(beta1), number(beta2), number(eps)
    g_ = tl.load(addresses + _G * tensors + tensor)
    f_ = tl.load(addresses + _F * tensors + tensor)
    m_ = tl.load(addresses + _M * tensors + tensor)

    u2 = tl.zeros((TILE,), tl.float64)
    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        u2 = _look(
            g_, f_, m_, tile, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, second, eps, u2,
            True, G, ALIGNED, TILE, MOMENTUM,
        )  # fmt: skip
    if full < stop:
        u2 = _look(
            g_, f_, m_, full, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, second, eps, u2,
            False, G, ALIGNED, TILE, MOMENTUM,
        )  # fmt: skip
    tl.store(partial + GBAR2 * chunks + chunk, tl.sum(u2, axis=0))


@kernel
def _apply(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, chunks, lr, beta1, beta2, eps, weight_decay,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    tensor, start, stop = span(chunks - 1 - tl.program_id(0), owner, first, sizes, CHUNK)
    mine = numbers + tensor * NUMBERS
    correction, second, clip = number(mine + _FIRST), number(mine + _SECOND), number(mine + GBAR)
    one_minus_beta1, one_minus_beta2 = (1.0 - wide(beta1)).to(tl.float32), (1.0 - wide(beta2)).to(tl.float32)
    beta1, beta2, eps = number(beta1), number(beta2), number(eps)
    eta, decay = number(lr), number(weight_decay)
    p_ = tl.load(addresses + _P * tensors + tensor)
    g_ = tl.load(addresses + _G * tensors + tensor)
    f_ = tl.load(addresses + _F * tensors + tensor)
    m_ = tl.load(addresses + _M * tensors + tensor)

    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        _step(
            p_, g_, f_, m_, tile, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, second, eps, clip,
            eta, decay, True, P, G, ALIGNED, TILE, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip
    if full < stop:
        _step(
            p_, g_, f_, m_, full, stop, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, second, eps, clip,
            eta, decay, False, P, G, ALIGNED, TILE, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip


# -- the step ---------------------------------------------------------------------------------------------------------


def adam_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor],
    m: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adam` of many tensors, flat and contiguous; m is there for all or for none."""
    rates: dict[str, Any] = {"beta1": as_bits(betas[0]), "beta2": as_bits(betas[1])}
    rule: dict[str, Any] = {**rates, "eps": as_bits(eps), "MOMENTUM": any(x is not None for x in m)}
    decay = {"weight_decay": as_bits(weight_decay), "DECAY": weight_decay != 0}
    for plan in plans(p, g, step, f, m):
        with plan.device():
            _prepare[(plan.tensors,)](**plan.by_tensor, **rates)
            if clip is not None:
                _gather[(plan.chunks,)](**plan.by_chunk, partial=plan.partial, **rule)
                resolve[(plan.tensors,)](
                    **plan.by_tensor, **plan.sums, again=0, eps=0, eps2=0, clip=as_bits(clip),
                    **exponent(0.5), ADAPTIVE=False, CLIP=True, DECAY=False,
                )  # fmt: skip
            rate = argument(lr, plan.layout.device)
            _apply[(plan.chunks,)](**plan.by_chunk, **rule, **decay, lr=rate, CLIP=clip is not None)
    touched(p, f, m)


def adam(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adam` of one tensor, flat and contiguous."""
    adam_many(
        (p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, eps=eps, clip=clip, weight_decay=weight_decay
    )  # fmt: skip
