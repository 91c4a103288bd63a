"""How a slot is kept between steps: as it is, in bfloat16, or in blocks of 8-bit numbers.

A rule works on float32 or float64 whatever the storage; reading widens, writing rounds stochastically, so that an
average moves even where one step is less than the distance of two stored numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fisheropt._dtensor import cuts_blocks, element_numbers, is_dtensor, local, per_block, placed_like
from fisheropt._layout import flat, in_layout_of
from fisheropt._math import quotient
from fisheropt._rounding import noise, round_to_bfloat16, salt
from fisheropt._state import Options, Slot, working_dtype
from fisheropt.kernels import Stored

__all__ = [
    "BLOCK",
    "MIN_SIZE_8BIT",
    "Numbers",
    "Storage",
    "assign",
    "converted",
    "parameter_as_kept",
    "scale_of",
    "storage_of",
]

BLOCK = 128  # 8-bit numbers that share a scale: 1 + 4/128 bytes per number
MIN_SIZE_8BIT = 4096  # smaller tensors (norms, biases) save nothing and keep full precision

Numbers = Callable[[], Tensor] | None
"""Of a shard: tells where its elements are in the whole tensor, which their noise goes by. None: it is the whole."""


def scale_of(slot: Slot) -> str:
    """Where the scales of a slot in 8 bits are."""
    return f"{slot.name}_scale"


class Storage(Protocol):
    """One way to keep a slot. ``state`` is ``optimizer.state[p]``."""

    direct: bool
    """The stored tensor is what the rule works on; `read` returns it and `write` is never needed."""

    def keys(self, slot: Slot) -> tuple[str, ...]:
        """The entries of ``state`` the slot takes; the first has the slot's name."""
        ...

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        """Those entries at the start."""
        ...

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        """The slot in working precision."""
        ...

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int, numbers: Numbers = None) -> None:
        """Store ``x``, which has the shape that `read` returned."""
        ...

    def as_kept(self, slot: Slot, state: dict[str, Tensor], seed: int) -> Tensor | Stored:
        """The slot for a kernel that reads and writes it as it is kept."""
        ...


class Plain:
    """In working precision."""

    direct = True

    def keys(self, slot: Slot) -> tuple[str, ...]:
        return (slot.name,)

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        return {slot.name: slot.allocate(p, options, working_dtype(p.dtype, options["state_dtype"]))}

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        return state[slot.name]

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int, numbers: Numbers = None) -> None:
        if x is not state[slot.name]:
            state[slot.name].copy_(x)

    def as_kept(self, slot: Slot, state: dict[str, Tensor], seed: int) -> Tensor | Stored:
        return state[slot.name]


class Brain16:
    """In bfloat16, 2 bytes per number."""

    direct = False

    def keys(self, slot: Slot) -> tuple[str, ...]:
        return (slot.name,)

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        return {slot.name: slot.allocate(p, options, torch.bfloat16)}

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        return state[slot.name].float()

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int, numbers: Numbers = None) -> None:
        stored = state[slot.name]
        index = None if numbers is None else flat(in_layout_of(stored, numbers()))
        flat(stored).copy_(round_to_bfloat16(flat(in_layout_of(stored, x)), state["step"], seed, slot.name, index))

    def as_kept(self, slot: Slot, state: dict[str, Tensor], seed: int) -> Tensor | Stored:
        return Stored(state[slot.name], None, 0, salt(seed, slot.name))


class Blocks8:
    """In 8 bits per number and a float32 scale per block of `BLOCK` numbers, in memory order.

    Where whole blocks make up a row of the tensor there are as many rows of scales, so that a shard of rows has its
    scales with it, and both are split in the same way. Otherwise the scales are one vector.

    Signed slots are linear, code / 127 times the scale. The others (f >= 0) are companded: (code / 255)^2 times the
    scale, so that numbers down to 1.5e-5 of the largest in the block survive; what is positive never becomes 0, which
    would turn a small denominator into none.
    """

    direct = False

    def keys(self, slot: Slot) -> tuple[str, ...]:
        return slot.name, scale_of(slot)

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        code, scale = self.keys(slot)
        largest, dtype = (127, torch.int8) if slot.signed else (255, torch.uint8)
        start = largest if slot.init else 0
        if is_dtensor(p):  # contiguous: the blocks are those of the whole tensor
            return {
                code: per_block(p, 1, start, dtype),
                scale: per_block(p, BLOCK, slot.init, torch.float32),
            }
        rows = p.dim() > 0 and p.shape[-1] % BLOCK == 0 and p.is_contiguous()
        blocks = (*p.shape[:-1], p.shape[-1] // BLOCK) if rows else (-(-p.numel() // BLOCK),)
        return {
            code: torch.full_like(p, start, dtype=dtype, requires_grad=False),
            scale: torch.full(blocks, slot.init, dtype=torch.float32, device=p.device),
        }

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        code, scale = (state[key] for key in self.keys(slot))
        x = torch.empty_like(code, dtype=torch.float32)
        unit = _blocks(flat(code)).float() * (1 / 127 if slot.signed else 1 / 255)
        unit = unit if slot.signed else unit.square_()
        flat(x).copy_((unit * flat(scale).unsqueeze(-1)).view(-1)[: x.numel()])
        return x

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int, numbers: Numbers = None) -> None:
        code, scale = (state[key] for key in self.keys(slot))
        blocks = _blocks(flat(in_layout_of(code, x)))
        flat(scale).copy_(torch.linalg.vector_norm(blocks, torch.inf, dim=-1))
        unit = quotient(blocks, flat(scale).unsqueeze(-1))
        index = None if numbers is None else flat(in_layout_of(code, numbers()))
        # the fraction in [0, 1) that rounding down cuts off is what the noise is compared with
        fraction = (noise(x.numel(), state["step"], seed, slot.name, index) >> 8).float().mul_(2.0**-24)
        if slot.signed:
            codes = torch.floor_(unit.mul_(127).add_(_blocks(fraction))).clamp_(-127, 127)
        else:
            codes = torch.floor_(unit.sqrt_().mul_(255).add_(_blocks(fraction))).clamp_(max=255)
            codes = torch.maximum(codes, (blocks > 0).to(codes.dtype))
        flat(code).copy_(codes.view(-1)[: x.numel()])

    def as_kept(self, slot: Slot, state: dict[str, Tensor], seed: int) -> Tensor | Stored:
        code, scale = (state[key] for key in self.keys(slot))
        return Stored(code, scale, BLOCK, salt(seed, slot.name))


def _blocks(x: Tensor) -> Tensor:
    """``(n,) -> (ceil(n / BLOCK), BLOCK)``, the last block filled up with zeros."""
    missing = -x.numel() % BLOCK
    x = torch.nn.functional.pad(x, (0, missing)) if missing else x
    return x.view(x.numel() // BLOCK, BLOCK)


_PLAIN, _BRAIN16, _BLOCKS8 = Plain(), Brain16(), Blocks8()


def storage_of(slot: Slot, p: Tensor, options: Options) -> Storage:
    """How this slot of parameter ``p`` is kept under the group's ``state_dtype``.

    Row and column sums are small and keep full precision, as does everything of a float64 parameter. A sharded tensor
    has the blocks of the whole one, and the same bits in them; that asks for blocks that make up whole rows, and a
    DTensor whose rows are no such keeps full precision, whatever its sharding.

    Raises:
        ValueError: the sharding cuts through the blocks of a tensor.
    """
    state_dtype = options["state_dtype"]
    if slot.summed_over is not None or p.dtype == torch.float64:
        return _PLAIN
    if state_dtype == torch.bfloat16:
        return _BRAIN16
    if state_dtype != "int8" or p.numel() < MIN_SIZE_8BIT:
        return _PLAIN
    if is_dtensor(p):
        if p.dim() < 2 or p.shape[-1] % BLOCK:
            return _PLAIN
        if cuts_blocks(p, BLOCK):
            placements = getattr(p, "placements", None)
            raise ValueError(
                f"state_dtype='int8' keeps blocks of {BLOCK} numbers along the last dimension, and "
                f"{placements} cuts through those of a "
                f"parameter of shape {tuple(p.shape)}; give it a parameter group with state_dtype=torch.bfloat16, or "
                "shard another dimension"
            )
    return _BLOCKS8


def converted(slot: Slot, saved: Mapping[str, Tensor], fresh: dict[str, Tensor], storage: Storage, seed: int) -> None:
    """Fill ``fresh``, as ``storage`` allocated it, from a slot that was saved in 8 bits, or in full, the other way.

    ``saved`` also has the ``step`` that the noise goes by. Where tensors are sharded every process calls this.
    """
    gathered = {key: placed_like(None, x) for key, x in saved.items()}
    wide = (_BLOCKS8 if scale_of(slot) in saved else _PLAIN).read(slot, gathered)
    code = fresh[slot.name]
    state = {"step": gathered["step"], **{key: local(x) for key, x in fresh.items()}}
    numbers = partial(element_numbers, code) if is_dtensor(code) else None
    storage.write(slot, state, local(placed_like(code, wide)).to(state[slot.name].device), seed, numbers)


def rounds(p: Tensor, options: Options) -> bool:
    """Whether the parameter itself is rounded stochastically."""
    return p.dtype == torch.bfloat16 and bool(options.get("stochastic_rounding"))


def parameter_as_kept(p: Tensor, options: Options) -> Tensor | Stored:
    """The parameter for a kernel that writes it as it is kept."""
    return Stored(p, None, 0, salt(options["seed"], "p")) if rounds(p, options) else p


def assign(p: Tensor, x: Tensor, state: dict[str, Tensor], options: Options, numbers: Numbers = None) -> None:
    """Round the parameter ``x``, computed in working precision, into ``p``, saturating at its largest number (SPEC D5).

    With the group's ``stochastic_rounding`` a bfloat16 parameter is rounded stochastically.
    """
    if rounds(p, options):
        rounded = torch.empty_like(x, dtype=p.dtype)
        index = None if numbers is None else flat(in_layout_of(x, numbers()))
        flat(rounded).copy_(round_to_bfloat16(flat(x), state["step"], options["seed"], "p", index))
        p.copy_(rounded)
        return
    if p.dtype != x.dtype:
        largest = torch.finfo(p.dtype).max
        x = x.clamp_(-largest, largest)
    p.copy_(x)
