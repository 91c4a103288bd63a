"""Row and column sums of squared gradients, for all matrices of a model at once.

A *strip* is a part of a matrix, some rows by some columns. One program per strip sums its squares by row and by
column; then one program per block of R or of C adds up what the strips across, or down, have found, in their order,
and updates the block. A tensor of more than two dimensions is a batch of matrices, one below the other.

    squares   sums of g^2 over the rows and columns of a strip      reads g
    factor    R and C, and the sum of all g^2
    share     R / sum(R) of each matrix
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from math import prod
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton._compile import device, kernel
from fisheropt.kernels.triton._memory import load, store
from fisheropt.kernels.triton._numbers import number, saturated, wide
from fisheropt.kernels.triton._plan import NUMBERS, Plan, shared_out, upload

__all__ = ["Matrices", "block_range", "factor", "fisher", "matrices", "share", "squares"]

_LINES = tl.constexpr(4)  # rows of a strip at a time
_BLOCK = tl.constexpr(256)  # numbers of R or C per program
_WHOLE = tl.constexpr(2048)  # of R at a time, where a program takes all of a matrix

# rows of the table, a number per tensor
_HEIGHT, _WIDTH, _BATCH, _STRIP, _BY_ROW, _BY_COLUMN, _VECTOR, _SHARE, _MATRIX = (tl.constexpr(n) for n in range(9))


@dataclass(frozen=True, eq=False)
class Matrices:
    """What a plan needs beside itself where its tensors are batches of matrices.

    Attributes:
        table: int64 (9, tensors): height, width and number of its matrices; its first strip; where its sums by row and
            by column begin; its first block of R and C; where its shares begin; its first matrix.
        strip_owner, block_owner, matrix_owner: int64: the tensor of each strip, block, and matrix.
        by_row, by_column: float64: the sums of the strips.
        whole: float64 (blocks,): the sum of g^2 over the rows of a block of R.
        shares: float32: R / sum(R) of every matrix.
    """

    table: Tensor
    strip_owner: Tensor
    block_owner: Tensor
    matrix_owner: Tensor
    by_row: Tensor
    by_column: Tensor
    whole: Tensor
    shares: Tensor

    @property
    def strips(self) -> dict[str, Any]:
        """Arguments of `squares`, beside those of the plan."""
        return {
            "table": self.table,
            "strip_owner": self.strip_owner,
            "by_row": self.by_row,
            "by_column": self.by_column,
        }

    @property
    def blocks(self) -> dict[str, Any]:
        """Arguments of `factor`, beside those of the plan."""
        return {
            "table": self.table,
            "block_owner": self.block_owner,
            "by_row": self.by_row,
            "by_column": self.by_column,
            "whole": self.whole,
        }


def _products(xs: Iterable[int], ys: Iterable[int]) -> list[int]:
    return [x * y for x, y in zip(xs, ys, strict=True)]


def _starts(lengths: Iterable[int]) -> list[int]:
    return [0, *accumulate(lengths)]


def _blocks(length: int) -> int:
    return -(-length // int(_BLOCK.value))


@lru_cache(maxsize=64)
def matrices(plan: Plan) -> Matrices:
    """The matrices of a plan."""
    rows, columns = plan.tiling.rows, plan.tiling.columns
    n, k, batch = (
        [shape[-2] for shape in plan.shapes],
        [shape[-1] for shape in plan.shapes],
        [prod(shape[:-2]) for shape in plan.shapes],
    )
    heights, widths = _products(n, batch), _products(k, batch)
    across, down = [-(-x // columns) for x in k], _products([-(-x // rows) for x in n], batch)
    first_strip, strip_owner = shared_out(_products(across, down))
    first_block, block_owner = shared_out([_blocks(h) + _blocks(w) for h, w in zip(heights, widths, strict=True)])
    first_matrix, matrix_owner = shared_out(batch)
    row_sums, column_sums = _starts(_products(across, heights)), _starts(_products(down, k))
    first_share = _starts(heights)
    starts = (first_strip, row_sums, column_sums, first_block, first_share, first_matrix)
    table = [n, k, batch, *(of_tensors[:-1] for of_tensors in starts)]
    of_table, of_strip, of_block, of_matrix = upload(
        plan.layout.device, list(chain(*table)), strip_owner, block_owner, matrix_owner
    )

    def scratch(length: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(length, dtype=dtype, device=plan.layout.device)

    return Matrices(
        of_table,
        of_strip,
        of_block,
        of_matrix,
        by_row=scratch(row_sums[-1], torch.float64),
        by_column=scratch(column_sums[-1], torch.float64),
        whole=scratch(len(block_owner), torch.float64),
        shares=scratch(first_share[-1], torch.float32),
    )


@device
def _of(table, row: tl.constexpr, tensors, tensor):  # type: ignore[no-untyped-def]
    return tl.load(table + row * tensors + tensor)


@kernel
def squares(  # type: ignore[no-untyped-def]
    addresses, sizes, tensors, table, strip_owner, by_row, by_column,
    GRADIENT: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums of a strip. GRADIENT: its row of ``addresses``."""
    strip = tl.program_id(0)
    tensor = tl.load(strip_owner + strip)
    n, k = _of(table, _HEIGHT, tensors, tensor), _of(table, _WIDTH, tensors, tensor)
    size = tl.load(sizes + tensor)
    g_ = tl.load(addresses + GRADIENT * tensors + tensor)

    strip -= _of(table, _STRIP, tensors, tensor)
    across, down = (k + COLUMNS - 1) // COLUMNS, (n + ROWS - 1) // ROWS
    level = strip // across  # counted through the batch
    matrix, left = level // down, strip % across
    top = level % down * ROWS
    bottom = tl.minimum(top + ROWS, n)

    column = left * COLUMNS + tl.arange(0, COLUMNS)
    row_sums = by_row + _of(table, _BY_ROW, tensors, tensor) + left * (size // k) + matrix * n
    column_sums = tl.zeros((COLUMNS,), tl.float64)
    for line in range(top, bottom, _LINES):
        row = line + tl.arange(0, _LINES)
        inside = (row < bottom)[:, None] & (column < k)[None, :]
        i = tl.where(inside, (matrix * n + row)[:, None] * k + column[None, :], size)
        g = load(g_, i, size, False, G, False).to(tl.float64)
        g2 = g * g
        tl.store(row_sums + row, tl.sum(g2, axis=1), row < bottom)
        column_sums += tl.sum(g2, axis=0)
    tl.store(by_column + _of(table, _BY_COLUMN, tensors, tensor) + level * k + column, column_sums, column < k)


@kernel
def factor(  # type: ignore[no-untyped-def]
    addresses, sizes, tensors, numbers, table, block_owner, by_row, by_column, whole, eps,
    ROW: tl.constexpr, COLUMN: tl.constexpr, B2HAT: tl.constexpr, ONE_MINUS_B2HAT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of R or of C. ROW, COLUMN: theirs of ``addresses``; eps: added to every square."""
    program = tl.program_id(0)
    tensor = tl.load(block_owner + program)
    n, k = _of(table, _HEIGHT, tensors, tensor), _of(table, _WIDTH, tensors, tensor)
    batch = _of(table, _BATCH, tensors, tensor)
    block = program - _of(table, _VECTOR, tensors, tensor)
    across, down = (k + COLUMNS - 1) // COLUMNS, (n + ROWS - 1) // ROWS
    height = n * batch

    lanes = tl.zeros((_BLOCK,), tl.float64)
    rows = (height + _BLOCK - 1) // _BLOCK  # blocks of R, which come before those of C
    if block < rows:
        i = block * _BLOCK + tl.arange(0, _BLOCK)
        inside = i < height
        sums = by_row + _of(table, _BY_ROW, tensors, tensor) + i
        for left in range(across):
            lanes += tl.load(sums + left * height, inside, other=0.0)
        tl.store(whole + program, tl.sum(lanes, axis=0))
        lanes += k * wide(eps)
        vector = tl.load(addresses + ROW * tensors + tensor)
    else:
        i = (block - rows) * _BLOCK + tl.arange(0, _BLOCK)
        inside = i < k * batch
        sums = by_column + _of(table, _BY_COLUMN, tensors, tensor) + i // k * down * k + i % k
        for level in range(down):
            lanes += tl.load(sums + level * k, inside, other=0.0)
        lanes += n * wide(eps)
        vector = tl.load(addresses + COLUMN * tensors + tensor)

    mine = numbers + tensor * NUMBERS
    new = saturated(lanes).to(tl.float32)
    old = load(vector, i, tl.where(inside, i + 1, 0), False, "float32", False)
    x = number(mine + B2HAT) * old + number(mine + ONE_MINUS_B2HAT) * new  # lines 7 and 8
    store(vector, i, tl.where(inside, i + 1, 0), x, False, "float32", False)


@kernel
def share(addresses, tensors, table, matrix_owner, shares, ROW: tl.constexpr):  # type: ignore[no-untyped-def]
    """R / sum(R) of a matrix; 0 where the sum is 0 (SPEC D11)."""
    tensor = tl.load(matrix_owner + tl.program_id(0))
    n = _of(table, _HEIGHT, tensors, tensor)
    matrix = tl.program_id(0) - _of(table, _MATRIX, tensors, tensor)
    R = tl.load(addresses + ROW * tensors + tensor)
    start, stop = matrix * n, matrix * n + n

    lanes = tl.zeros((_WHOLE,), tl.float64)
    for block in range(start, stop, _WHOLE):
        lanes += load(R, block + tl.arange(0, _WHOLE), stop, False, "float32", False).to(tl.float64)
    sum_R = tl.sum(lanes, axis=0)
    sum_R = tl.where(sum_R == 0.0, float("inf"), sum_R)
    mine = shares + _of(table, _SHARE, tensors, tensor)
    for block in range(start, stop, _WHOLE):
        i = block + tl.arange(0, _WHOLE)
        x = load(R, i, stop, False, "float32", False).to(tl.float64) / sum_R
        tl.store(mine + i, x.to(tl.float32), i < stop)


@device
def block_range(table, tensors, tensor):  # type: ignore[no-untyped-def]
    """The blocks of R of a tensor, from the first to before the last: where ``whole`` has its sums of g^2."""
    start = _of(table, _VECTOR, tensors, tensor)
    height = _of(table, _HEIGHT, tensors, tensor) * _of(table, _BATCH, tensors, tensor)
    return start, start + (height + _BLOCK - 1) // _BLOCK


@device
def fisher(share, C, table, tensors, tensor, i, stop, start):  # type: ignore[no-untyped-def]
    """f = outer(R, C) / sum(R) of the elements ``i`` of a tensor, the first of which in this chunk is ``start``.

    Counted from the row where the chunk starts, so that the divisions are of 32 bits.
    """
    n, k = _of(table, _HEIGHT, tensors, tensor), _of(table, _WIDTH, tensors, tensor)
    first_row = start // k
    first_matrix = first_row // n
    j = (i - first_row * k).to(tl.int32)
    row = j // k.to(tl.int32)
    column = j - row * k.to(tl.int32)
    matrix = ((first_row - first_matrix * n).to(tl.int32) + row) // n.to(tl.int32)
    inside = i < stop
    r = tl.load(share + _of(table, _SHARE, tensors, tensor) + first_row + row, inside, other=0.0)
    c = load(C, tl.where(inside, (first_matrix + matrix) * k + column, stop), stop, False, "float32", False)
    return r * c  # line 9
