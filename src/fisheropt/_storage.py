"""How a slot is kept between steps: as it is, in bfloat16, or in blocks of 8-bit numbers.

A rule works on float32 or float64 whatever the storage; reading widens, writing rounds stochastically, so that an
average moves even where one step is less than the distance of two stored numbers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fisheropt._dtensor import is_dtensor
from fisheropt._layout import flat, in_layout_of
from fisheropt._math import quotient
from fisheropt._rounding import noise, round_to_bfloat16
from fisheropt._state import Options, Slot, working_dtype

__all__ = ["BLOCK", "MIN_SIZE_8BIT", "Storage", "assign", "storage_of"]

BLOCK = 128  # 8-bit numbers that share a scale: 1 + 4/128 bytes per number
MIN_SIZE_8BIT = 4096  # smaller tensors (norms, biases) save nothing and keep full precision


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

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int) -> None:
        """Store ``x``, which has the shape that `read` returned."""
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

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int) -> None:
        if x is not state[slot.name]:
            state[slot.name].copy_(x)


class Brain16:
    """In bfloat16, 2 bytes per number."""

    direct = False

    def keys(self, slot: Slot) -> tuple[str, ...]:
        return (slot.name,)

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        return {slot.name: slot.allocate(p, options, torch.bfloat16)}

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        return state[slot.name].float()

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int) -> None:
        stored = state[slot.name]
        flat(stored).copy_(round_to_bfloat16(flat(in_layout_of(stored, x)), state["step"], seed, slot.name))


class Blocks8:
    """In 8 bits per number and a float32 scale per block of `BLOCK` numbers, in memory order.

    Signed slots are linear, code / 127 times the scale. The others (f >= 0) are companded: (code / 255)^2 times the
    scale, so that numbers down to 1.5e-5 of the largest in the block survive; what is positive never becomes 0, which
    would turn a small denominator into none.
    """

    direct = False

    def keys(self, slot: Slot) -> tuple[str, ...]:
        return slot.name, f"{slot.name}_scale"

    def allocate(self, slot: Slot, p: Tensor, options: Options) -> dict[str, Tensor]:
        code, scale = self.keys(slot)
        largest, dtype = (127, torch.int8) if slot.signed else (255, torch.uint8)
        blocks = -(-p.numel() // BLOCK)
        return {
            code: torch.full_like(p, largest if slot.init else 0, dtype=dtype, requires_grad=False),
            scale: torch.full((blocks,), slot.init, dtype=torch.float32, device=p.device),
        }

    def read(self, slot: Slot, state: dict[str, Tensor]) -> Tensor:
        code, scale = (state[key] for key in self.keys(slot))
        x = torch.empty_like(code, dtype=torch.float32)
        unit = _blocks(flat(code)).float() / (127 if slot.signed else 255)
        unit = unit if slot.signed else unit.square_()
        flat(x).copy_((unit * scale.unsqueeze(-1)).view(-1)[: x.numel()])
        return x

    def write(self, slot: Slot, state: dict[str, Tensor], x: Tensor, seed: int) -> None:
        code, scale = (state[key] for key in self.keys(slot))
        blocks = _blocks(flat(in_layout_of(code, x)))
        scale.copy_(torch.linalg.vector_norm(blocks, torch.inf, dim=-1))
        unit = quotient(blocks, scale.unsqueeze(-1))
        # the fraction in [0, 1) that rounding down cuts off is what the noise is compared with
        fraction = (noise(x.numel(), state["step"], seed, slot.name) >> 8).float().mul_(2.0**-24)
        if slot.signed:
            numbers = torch.floor_(unit.mul_(127).add_(_blocks(fraction))).clamp_(-127, 127)
        else:
            numbers = torch.floor_(unit.sqrt_().mul_(255).add_(_blocks(fraction))).clamp_(max=255)
            numbers = torch.maximum(numbers, (blocks > 0).to(numbers.dtype))
        flat(code).copy_(numbers.view(-1)[: x.numel()])


def _blocks(x: Tensor) -> Tensor:
    """``(n,) -> (ceil(n / BLOCK), BLOCK)``, the last block filled up with zeros."""
    missing = -x.numel() % BLOCK
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).view(-1, BLOCK)


_PLAIN, _BRAIN16, _BLOCKS8 = Plain(), Brain16(), Blocks8()


def storage_of(slot: Slot, p: Tensor, options: Options) -> Storage:
    """How this slot of parameter ``p`` is kept under the group's ``state_dtype``.

    Row and column sums are small and keep full precision, as does everything of a float64 parameter. Blocks of 8-bit
    numbers would not survive another sharding, so DTensor parameters keep full precision too.
    """
    state_dtype = options["state_dtype"]
    if slot.summed_over is not None or p.dtype == torch.float64:
        return _PLAIN
    if state_dtype == torch.bfloat16:
        return _BRAIN16
    if state_dtype == "int8" and p.numel() >= MIN_SIZE_8BIT and not is_dtensor(p):
        return _BLOCKS8
    return _PLAIN


def assign(p: Tensor, x: Tensor, state: dict[str, Tensor], options: Options) -> None:
    """Round the parameter ``x``, computed in working precision, into ``p``, saturating at its largest number (SPEC D5).

    With the group's ``stochastic_rounding`` a bfloat16 parameter is rounded stochastically.
    """
    if p.dtype == torch.bfloat16 and options.get("stochastic_rounding"):
        rounded = torch.empty_like(x, dtype=p.dtype)
        flat(rounded).copy_(round_to_bfloat16(flat(x), state["step"], options["seed"], "p"))
        p.copy_(rounded)
        return
    if p.dtype != x.dtype:
        largest = torch.finfo(p.dtype).max
        x = x.clamp_(-largest, largest)
    p.copy_(x)
