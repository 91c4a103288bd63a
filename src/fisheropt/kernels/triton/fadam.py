"""FAdam (Algorithm 1) for all tensors of a model in six launches: the lines and letters of `fisheropt.fadam`.

    prepare   line 6                                        a program per tensor
    gather    sums of g^2, gbar^2 and gw^2                  a program per chunk; reads p, g, f
    resolve   rms(g) and ehat, the clips of lines 10, 13    a program per tensor
    gather    again, where ehat was not what it was taken for
    resolve   again
    apply     lines 7 and 9 to 14                           a program per chunk; reads p, g, f, m and writes p, f, m

The first look takes ehat for eps, its upper bound, and so takes all three sums in one pass. Where ehat turns out to be
less, gbar and gw are summed in a second pass, in which chunks of all other tensors return at once; of such a tensor
the next step sums only g^2 at first. What is used in the end is exact either way, with the same bits.

f is computed where it is needed and written only by apply, so nothing has changed before everything is known. apply
takes the chunks in reverse, as what gather read last is what the cache still has.
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
    clip_scale,
    exponent,
    number,
    power,
    power_of_number,
    quotient,
    root_mean,
    square,
    wide,
)
from fisheropt.kernels.triton._plan import MARKS, NUMBERS, plans, supports, touched
from fisheropt.kernels.triton._sums import span, total

__all__ = [
    "B2HAT", "EPSILON", "GBAR", "GBAR2", "GW", "GW2", "ONE_MINUS_B2HAT",
    "descent", "fadam", "fadam_many", "metric", "prepare", "resolve", "supports",
]  # fmt: skip

_P, _G, _STEP, _F, _M = (tl.constexpr(row) for row in range(5))  # rows of addresses
B2HAT, ONE_MINUS_B2HAT, EPSILON, GBAR, GW = (tl.constexpr(n) for n in range(5))  # of a tensor's numbers
_G2, GBAR2, GW2 = (tl.constexpr(row) for row in range(3))  # rows of sums per chunk
# marks of a tensor: ehat was below eps in the last step; gbar and gw are yet to be summed
_BELOW, _STALE = (tl.constexpr(n) for n in range(2))


# -- the rule ---------------------------------------------------------------------------------------------------------


@device
def _fisher(f, g, b2hat, one_minus_b2hat):  # type: ignore[no-untyped-def]
    return b2hat * f + one_minus_b2hat * square(g)  # line 7


@device
def metric(f, epsilon, RHO: tl.constexpr, RHO_HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    return power(f, RHO, RHO_HIGH) + epsilon  # of lines 9 and 12; epsilon is ehat^(2 rho)


@device
def descent(  # type: ignore[no-untyped-def]
    p, g, m, d, gbar_clip, gw_clip, eta, beta1, one_minus_beta1, decay,
    CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Lines 9 to 14, which are also those of Algorithm 2: the new p and m."""
    gbar = quotient(g, d)  # line 9
    if CLIP:
        gbar = tl.div_rn(gbar, gbar_clip)  # line 10
    m = beta1 * m + one_minus_beta1 * gbar if MOMENTUM else gbar  # line 11
    u = m
    if DECAY:
        gw = quotient(p, d)  # line 12
        if CLIP:
            gw = tl.div_rn(gw, gw_clip)  # line 13
        u = m + decay * gw
    return p - eta * u, m  # line 14


@device
def _look(  # type: ignore[no-untyped-def]
    p_, g_, f_, tile, stop, b2hat, one_minus_b2hat, epsilon, ehat_known, g2, gbar2, gw2,
    FULL: tl.constexpr, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, ADAPTIVE: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """A tile's part in the sums, in float64: no square of a float32 leaves its range."""
    i = tile + tl.arange(0, TILE)
    g = load(g_, i, stop, FULL, G, ALIGNED)
    if CLIP:
        if ehat_known:
            f = _fisher(load(f_, i, stop, FULL, "float32", ALIGNED), g, b2hat, one_minus_b2hat)
            d = metric(f, epsilon, RHO, RHO_HIGH)
            gbar = quotient(g, d).to(tl.float64)  # line 9
            gbar2 += gbar * gbar
            if DECAY:
                gw = quotient(load(p_, i, stop, FULL, P, ALIGNED), d).to(tl.float64)  # line 12
                gw2 += gw * gw
    if ADAPTIVE:
        g2 += g.to(tl.float64) * g.to(tl.float64)
    return g2, gbar2, gw2


@device
def _step(  # type: ignore[no-untyped-def]
    p_, g_, f_, m_, tile, stop, b2hat, one_minus_b2hat, epsilon, gbar_clip, gw_clip, eta, beta1, one_minus_beta1, decay,
    FULL: tl.constexpr, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """A tile's step."""
    i = tile + tl.arange(0, TILE)
    p = load(p_, i, stop, FULL, P, ALIGNED)
    g = load(g_, i, stop, FULL, G, ALIGNED)
    f = _fisher(load(f_, i, stop, FULL, "float32", ALIGNED), g, b2hat, one_minus_b2hat)  # line 7
    d = metric(f, epsilon, RHO, RHO_HIGH)
    m = g  # without momentum it is gbar, whatever is here
    if MOMENTUM:
        m = load(m_, i, stop, FULL, "float32", ALIGNED)
    p, m = descent(p, g, m, d, gbar_clip, gw_clip, eta, beta1, one_minus_beta1, decay, CLIP, DECAY, MOMENTUM)
    if MOMENTUM:
        store(m_, i, stop, m, FULL, "float32", ALIGNED)
    store(f_, i, stop, f, FULL, "float32", ALIGNED)
    store(p_, i, stop, p, FULL, P, ALIGNED)


# -- the launches -----------------------------------------------------------------------------------------------------


@kernel
def prepare(addresses, sizes, first, numbers, tensors, chunks, beta2, epsilon):  # type: ignore[no-untyped-def]
    tensor = tl.program_id(0)
    beta2 = wide(beta2)
    step = tl.load(tl.load(addresses + _STEP * tensors + tensor).to(tl.pointer_type(tl.int64)))
    correction = bias_correction(beta2, step)
    mine = numbers + tensor * NUMBERS
    tl.store(mine + B2HAT, beta2 * bias_correction(beta2, step - 1) / correction)  # line 6
    tl.store(mine + ONE_MINUS_B2HAT, (1.0 - beta2) / correction)
    tl.store(mine + EPSILON, wide(epsilon))


@kernel
def _gather(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, partial, marks, chunks, again,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, ADAPTIVE: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    tensor, start, stop = span(chunk, owner, first, sizes, CHUNK)
    mark = 0
    if (
        ADAPTIVE
    ):  # at first: whether ehat was below eps in the last step; then: whether gbar and gw are yet to be summed
        mark = tl.load(marks + tensor * MARKS + again)
    if again > mark:
        return
    ehat_known = mark == again

    mine = numbers + tensor * NUMBERS
    b2hat, one_minus_b2hat = number(mine + B2HAT), number(mine + ONE_MINUS_B2HAT)
    epsilon = number(mine + EPSILON)
    p_ = tl.load(addresses + _P * tensors + tensor)
    g_ = tl.load(addresses + _G * tensors + tensor)
    f_ = tl.load(addresses + _F * tensors + tensor)

    g2 = tl.zeros((TILE,), tl.float64)
    gbar2 = tl.zeros((TILE,), tl.float64)
    gw2 = tl.zeros((TILE,), tl.float64)
    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        g2, gbar2, gw2 = _look(
            p_, g_, f_, tile, stop, b2hat, one_minus_b2hat, epsilon, ehat_known, g2, gbar2, gw2,
            True, P, G, ALIGNED, TILE, RHO, RHO_HIGH, ADAPTIVE, CLIP, DECAY,
        )  # fmt: skip
    if full < stop:
        g2, gbar2, gw2 = _look(
            p_, g_, f_, full, stop, b2hat, one_minus_b2hat, epsilon, ehat_known, g2, gbar2, gw2,
            False, P, G, ALIGNED, TILE, RHO, RHO_HIGH, ADAPTIVE, CLIP, DECAY,
        )  # fmt: skip
    if ADAPTIVE:
        tl.store(partial + _G2 * chunks + chunk, tl.sum(g2, axis=0))
    if CLIP:
        tl.store(partial + GBAR2 * chunks + chunk, tl.sum(gbar2, axis=0))
        if DECAY:
            tl.store(partial + GW2 * chunks + chunk, tl.sum(gw2, axis=0))


@kernel
def resolve(  # type: ignore[no-untyped-def]
    addresses, sizes, first, numbers, tensors, partial, marks, chunks, again, eps, eps2, clip,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, ADAPTIVE: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    tensor = tl.program_id(0)
    mark = 0
    if ADAPTIVE:
        mark = tl.load(marks + tensor * MARKS + again)
    if again > mark:
        return
    mine = numbers + tensor * NUMBERS
    count = tl.load(sizes + tensor).to(tl.float64)
    start, stop = tl.load(first + tensor), tl.load(first + tensor + 1)

    if ADAPTIVE:
        if again == 0:
            relative = wide(eps2) * root_mean(total(partial + _G2 * chunks, start, stop), count)
            below = (relative >= wide(eps)) == 0  # a NaN is, and goes on from here
            if below:
                tl.store(mine + EPSILON, power_of_number(relative, RHO * 2))  # line 8
            tl.store(marks + tensor * MARKS + _BELOW, below.to(tl.int32))
            tl.store(marks + tensor * MARKS + _STALE, (below | (mark == 1)).to(tl.int32))
    if CLIP:
        gbar2 = total(partial + GBAR2 * chunks, start, stop)
        tl.store(mine + GBAR, clip_scale(gbar2, count, wide(clip)))  # of line 10
        if DECAY:
            gw2 = total(partial + GW2 * chunks, start, stop)
            tl.store(mine + GW, clip_scale(gw2, count, wide(clip)))  # of line 13


@kernel
def _apply(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, chunks, lr, beta1, weight_decay,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    tensor, start, stop = span(chunks - 1 - tl.program_id(0), owner, first, sizes, CHUNK)
    mine = numbers + tensor * NUMBERS
    b2hat, one_minus_b2hat = number(mine + B2HAT), number(mine + ONE_MINUS_B2HAT)
    epsilon, gbar_clip, gw_clip = number(mine + EPSILON), number(mine + GBAR), number(mine + GW)
    eta, decay = number(lr), number(weight_decay)
    one_minus_beta1 = (1.0 - wide(beta1)).to(tl.float32)
    beta1 = number(beta1)
    p_ = tl.load(addresses + _P * tensors + tensor)
    g_ = tl.load(addresses + _G * tensors + tensor)
    f_ = tl.load(addresses + _F * tensors + tensor)
    m_ = tl.load(addresses + _M * tensors + tensor)

    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        _step(
            p_, g_, f_, m_, tile, stop, b2hat, one_minus_b2hat, epsilon, gbar_clip, gw_clip, eta, beta1,
            one_minus_beta1, decay, True, P, G, ALIGNED, TILE, RHO, RHO_HIGH, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip
    if full < stop:
        _step(
            p_, g_, f_, m_, full, stop, b2hat, one_minus_b2hat, epsilon, gbar_clip, gw_clip, eta, beta1,
            one_minus_beta1, decay, False, P, G, ALIGNED, TILE, RHO, RHO_HIGH, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip


# -- the step ---------------------------------------------------------------------------------------------------------


def fadam_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor],
    m: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadam.fadam` of many tensors, flat and contiguous; m is there for all or for none."""
    rule: dict[str, Any] = {**exponent(rho), "CLIP": clip is not None, "DECAY": weight_decay != 0}
    statistics = {"ADAPTIVE": eps2 is not None, **rule}
    bounds = {"eps": as_bits(eps), "eps2": as_bits(eps2 or 0.0), "clip": as_bits(clip or 0.0)}
    rates = {"beta1": as_bits(betas[0]), "weight_decay": as_bits(weight_decay)}
    rates["MOMENTUM"] = any(x is not None for x in m)
    for plan in plans(p, g, step, f, m):
        with plan.device():
            prepare[(plan.tensors,)](**plan.by_tensor, beta2=as_bits(betas[1]), epsilon=as_bits(eps ** (2 * rho)))
            for again in range((eps2 is not None) + (clip is not None)):
                _gather[(plan.chunks,)](**plan.by_chunk, **plan.sums, again=again, **statistics)
                resolve[(plan.tensors,)](**plan.by_tensor, **plan.sums, again=again, **bounds, **statistics)
            _apply[(plan.chunks,)](**plan.by_chunk, lr=argument(lr, plan.layout.device), **rates, **rule)
    touched(p, f, m)


def fadam(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
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
    """`fisheropt.fadam.fadam` of one tensor, flat and contiguous."""
    fadam_many(
        (p,), (g,), (step,), (f,), (m,),
        lr=lr, betas=betas, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay,
    )  # fmt: skip
