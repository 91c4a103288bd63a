"""FAdafactor (Algorithm 2) for all matrices of a model in eight launches: lines and letters of `fisheropt.fadafactor`.

    prepare   line 6                                        a program per tensor
    squares   row and column sums of g^2                    a program per strip; reads g
    factor    lines 7 and 8: R and C                        a program per block of them
    share     R / sum(R)                                    a program per matrix
    ehat      rms(g) and ehat                               a program per tensor
    gather    sums of gbar^2 and gw^2                       a program per chunk; reads p, g
    resolve   the clips of lines 10 and 13                  a program per tensor
    apply     lines 9 to 14 of Algorithm 1                  a program per chunk; reads p, g, m and writes p, m

f is never in memory: an element of it is a product of two numbers that caches hold. R and C change before p and m do,
as nothing else needs what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton import _plan
from fisheropt.kernels.triton._compile import device, kernel
from fisheropt.kernels.triton._matrices import block_range, factor, fisher, matrices, share, squares
from fisheropt.kernels.triton._memory import load, store
from fisheropt.kernels.triton._numbers import (
    argument,
    as_bits,
    exponent,
    number,
    power_of_number,
    quotient,
    root_mean,
    wide,
)
from fisheropt.kernels.triton._plan import NUMBERS, plans, touched
from fisheropt.kernels.triton._sums import span, total
from fisheropt.kernels.triton.fadam import (
    B2HAT,
    EPSILON,
    GBAR,
    GBAR2,
    GW,
    GW2,
    ONE_MINUS_B2HAT,
    descent,
    metric,
    prepare,
    resolve,
)

__all__ = ["fadafactor", "fadafactor_many", "supports"]

_P, _G, _STEP, _R, _C, _M = (tl.constexpr(row) for row in range(6))  # rows of addresses


@kernel
def _ehat(  # type: ignore[no-untyped-def]
    addresses, sizes, first, numbers, tensors, chunks, table, whole, eps, eps2, RHO: tl.constexpr
):  # fmt: skip
    tensor = tl.program_id(0)
    start, stop = block_range(table, tensors, tensor)
    count = tl.load(sizes + tensor).to(tl.float64)
    relative = wide(eps2) * root_mean(total(whole, start, stop), count)
    if (relative >= wide(eps)) == 0:  # so is a NaN
        tl.store(numbers + tensor * NUMBERS + EPSILON, power_of_number(relative, RHO * 2))  # line 8


@device
def _look(  # type: ignore[no-untyped-def]
    p_, g_, C, shares, table, tensors, tensor, tile, start, stop, epsilon, gbar2, gw2,
    FULL: tl.constexpr, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """A tile's part in the sums, in float64."""
    i = tile + tl.arange(0, TILE)
    d = metric(fisher(shares, C, table, tensors, tensor, i, stop, start), epsilon, RHO, RHO_HIGH)
    gbar = quotient(load(g_, i, stop, FULL, G, ALIGNED), d).to(tl.float64)  # line 9
    gbar2 += gbar * gbar
    if DECAY:
        gw = quotient(load(p_, i, stop, FULL, P, ALIGNED), d).to(tl.float64)  # line 12
        gw2 += gw * gw
    return gbar2, gw2


@device
def _step(  # type: ignore[no-untyped-def]
    p_, g_, C, m_, shares, table, tensors, tensor, tile, start, stop, epsilon, gbar_clip, gw_clip, eta, beta1,
    one_minus_beta1, decay,
    FULL: tl.constexpr, P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """A tile's step."""
    i = tile + tl.arange(0, TILE)
    d = metric(fisher(shares, C, table, tensors, tensor, i, stop, start), epsilon, RHO, RHO_HIGH)
    p = load(p_, i, stop, FULL, P, ALIGNED)
    g = load(g_, i, stop, FULL, G, ALIGNED)
    m = g  # without momentum it is gbar, whatever is here
    if MOMENTUM:
        m = load(m_, i, stop, FULL, "float32", ALIGNED)
    p, m = descent(p, g, m, d, gbar_clip, gw_clip, eta, beta1, one_minus_beta1, decay, CLIP, DECAY, MOMENTUM)
    if MOMENTUM:
        store(m_, i, stop, m, FULL, "float32", ALIGNED)
    store(p_, i, stop, p, FULL, P, ALIGNED)


@kernel
def _gather(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, chunks, partial, table, shares,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    tensor, start, stop = span(chunk, owner, first, sizes, CHUNK)
    epsilon = number(numbers + tensor * NUMBERS + EPSILON)
    p_ = tl.load(addresses + _P * tensors + tensor)
    g_ = tl.load(addresses + _G * tensors + tensor)
    C = tl.load(addresses + _C * tensors + tensor)

    gbar2 = tl.zeros((TILE,), tl.float64)
    gw2 = tl.zeros((TILE,), tl.float64)
    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        gbar2, gw2 = _look(
            p_, g_, C, shares, table, tensors, tensor, tile, start, stop, epsilon, gbar2, gw2,
            True, P, G, ALIGNED, TILE, RHO, RHO_HIGH, DECAY,
        )  # fmt: skip
    if full < stop:
        gbar2, gw2 = _look(
            p_, g_, C, shares, table, tensors, tensor, full, start, stop, epsilon, gbar2, gw2,
            False, P, G, ALIGNED, TILE, RHO, RHO_HIGH, DECAY,
        )  # fmt: skip
    tl.store(partial + GBAR2 * chunks + chunk, tl.sum(gbar2, axis=0))
    if DECAY:
        tl.store(partial + GW2 * chunks + chunk, tl.sum(gw2, axis=0))


@kernel
def _apply(  # type: ignore[no-untyped-def]
    addresses, sizes, first, owner, numbers, tensors, chunks, table, shares, lr, beta1, weight_decay,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    RHO: tl.constexpr, RHO_HIGH: tl.constexpr, CLIP: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    tensor, start, stop = span(chunks - 1 - tl.program_id(0), owner, first, sizes, CHUNK)
    mine = numbers + tensor * NUMBERS
    epsilon, gbar_clip, gw_clip = number(mine + EPSILON), number(mine + GBAR), number(mine + GW)
    eta, decay = number(lr), number(weight_decay)
    one_minus_beta1 = (1.0 - wide(beta1)).to(tl.float32)
    beta1 = number(beta1)
    p_ = tl.load(addresses + _P * tensors + tensor)
    g_ = tl.load(addresses + _G * tensors + tensor)
    C = tl.load(addresses + _C * tensors + tensor)
    m_ = tl.load(addresses + _M * tensors + tensor)

    full = stop - (stop - start) % TILE
    for tile in range(start, full, TILE):
        _step(
            p_, g_, C, m_, shares, table, tensors, tensor, tile, start, stop, epsilon, gbar_clip, gw_clip, eta, beta1,
            one_minus_beta1, decay, True, P, G, ALIGNED, TILE, RHO, RHO_HIGH, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip
    if full < stop:
        _step(
            p_, g_, C, m_, shares, table, tensors, tensor, full, start, stop, epsilon, gbar_clip, gw_clip, eta, beta1,
            one_minus_beta1, decay, False, P, G, ALIGNED, TILE, RHO, RHO_HIGH, CLIP, DECAY, MOMENTUM,
        )  # fmt: skip


# -- the step ---------------------------------------------------------------------------------------------------------


def supports(p: Tensor, g: Tensor, slots: Sequence[Tensor | None], options: Mapping[str, Any]) -> str | None:
    """Why the kernels do not take a tensor, or None."""
    R, C = slots[0], slots[1]
    assert R is not None
    assert C is not None
    if R.shape != p.shape[:-1] or C.shape != (*p.shape[:-2], p.shape[-1]):
        return "the factored dimensions are not the last two"
    if not all(x.is_contiguous() for x in (p, g, *slots) if x is not None):
        return "a tensor is not contiguous"
    return _plan.supports(p, g, slots, options)


def fadafactor_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    R: Sequence[Tensor],
    C: Sequence[Tensor],
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
    """`fisheropt.fadafactor.fadafactor` of many tensors (..., n, k), contiguous; m is there for all or for none."""
    rule: dict[str, Any] = {**exponent(rho), "DECAY": weight_decay != 0}
    clips = {"CLIP": clip is not None}
    bounds = {"eps": as_bits(eps), "eps2": as_bits(eps2 or 0.0)}
    rates = {"beta1": as_bits(betas[0]), "weight_decay": as_bits(weight_decay)}
    rates["MOMENTUM"] = any(x is not None for x in m)
    for plan in plans(p, g, step, R, C, m):
        of = matrices(plan)
        factored = {"table": of.table, "shares": of.shares}
        with plan.device():
            prepare[(plan.tensors,)](**plan.by_tensor, beta2=as_bits(betas[1]), epsilon=as_bits(eps ** (2 * rho)))
            squares[(len(of.strip_owner),)](**plan.by_strip, **of.strips, GRADIENT=_G.value, G=plan.layout.G)
            factor[(len(of.block_owner),)](
                **plan.by_strip, **of.blocks, numbers=plan.numbers, eps=as_bits(0.0),
                ROW=_R.value, COLUMN=_C.value, B2HAT=B2HAT.value, ONE_MINUS_B2HAT=ONE_MINUS_B2HAT.value,
            )  # fmt: skip
            share[(len(of.matrix_owner),)](
                plan.addresses, plan.tensors, of.table, of.matrix_owner, of.shares,
                ROW=_R.value, num_warps=plan.tiling.warps,
            )  # fmt: skip
            if eps2 is not None:
                _ehat[(plan.tensors,)](**plan.by_tensor, table=of.table, whole=of.whole, **bounds, RHO=rho)
            if clip is not None:
                _gather[(plan.chunks,)](**plan.by_chunk, partial=plan.partial, **factored, **rule)
                resolve[(plan.tensors,)](
                    **plan.by_tensor, **plan.sums, **bounds, **rule, **clips,
                    clip=as_bits(clip), again=0, ADAPTIVE=False,
                )  # fmt: skip
            _apply[(plan.chunks,)](
                **plan.by_chunk, **factored, lr=argument(lr, plan.layout.device), **rates, **rule, **clips
            )
    touched(p, R, C, m)


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
    """`fisheropt.fadafactor.fadafactor` of one tensor (..., n, k), contiguous."""
    fadafactor_many(
        (p,), (g,), (step,), (R,), (C,), (m,),
        lr=lr, betas=betas, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay,
    )  # fmt: skip
