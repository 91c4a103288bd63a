"""The two factors of a layer's Fisher information, from what goes into the layer and what comes back to it.

Source: Martins Gomes et al., *AdaFisher*, ICLR 2025, arXiv:2405.16397, Section 3. For a layer with input h (a 1
appended where it has a bias) and gradient s of the loss with respect to its output, the diagonal of the Fisher
information of the weights is approximated by a Kronecker product::

    H = mean over units and positions of h^2           one number per input feature
    S = mean over units and positions of s^2           one number per output feature
    F[o, i] = S[o] H[i]

It is exact for one unit at one position, where the gradient is the outer product of s and h, and where squares of s
and h are uncorrelated over units. A `Layer` knows what h and s are for one kind of layer and how its parameters lie:

=====================  =======================  ================  ==================================================
layer                  inputs, features of h    outputs, of s     notes
=====================  =======================  ================  ==================================================
Linear                 in [+1]                  out               every leading dimension counts as units
Conv1d, 2d, 3d         in prod(kernel) [+1]     out               h: the unfolded patches, those of all groups
Embedding              rows                     width             h: one-hot, so H is how often each row was looked up
=====================  =======================  ================  ==================================================

Everything is summed in float64: min-max normalisation (SPEC D15) takes small differences of these numbers, and would
otherwise turn the rounding of a sum into a large error of a small F.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

__all__ = ["ConvLayer", "EmbeddingLayer", "Layer", "LinearLayer", "Role", "layer_of", "minmax", "sum_of_squares"]

Role = Literal["weight", "bias"]
"""Which of the parameters of a layer."""

_BLOCK = 1 << 16  # elements widened at a time: what is in the cache need not be written to memory in float64


def minmax(x: Tensor, extremes: Tensor | None = None) -> Tensor:
    """``(x - min)/(max - min)`` over the whole tensor, in [0, 1]; 1 where all elements are equal (SPEC D15).

    ``extremes``: min and max, where ``x`` is a shard; (2,).
    """
    if x.numel() == 0:
        return x.clone()
    low, high = torch.aminmax(x) if extremes is None else extremes.to(x.dtype)
    spread = high - low
    return torch.where(spread == 0, 1.0, (x - low) / spread)


def sum_of_squares(x: Tensor) -> Tensor:
    """``sum x^2`` over the first dimension, in float64: (units, ...) -> (...)."""
    total = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device)
    block = _BLOCK if x.device.type == "cpu" else 64 * _BLOCK
    for part in torch.split(x, max(1, block // max(1, total.numel()))):
        total += part.to(torch.float64, copy=True).square_().sum(0)
    return total


class Layer(Protocol):
    """What the factors of one kind of layer are."""

    @property
    def inputs(self) -> int:
        """Number of input features, without the 1 of a bias."""

    @property
    def outputs(self) -> int:
        """Number of output features."""

    @property
    def bias(self) -> bool:
        """Whether h ends with a 1."""

    def input_squares(self, x: Tensor) -> Tensor:
        """The sum of h^2 over the units and positions of an input of the layer: (inputs,), float64, without the 1."""

    def output_squares(self, s: Tensor) -> tuple[Tensor, int]:
        """The sum of s^2 over units and positions, (outputs,) in float64, and how many these are."""

    def placed(self, role: Role, S: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        """The factors as rows and columns whose product broadcasts to the shape of a parameter, in its orientation.

        Args:
            role: which parameter.
            S: (outputs,).
            H: (inputs [+1],).
        """


@dataclass(frozen=True)
class LinearLayer:
    """y = W h: W is (outputs, inputs)."""

    inputs: int
    outputs: int
    bias: bool

    def input_squares(self, x: Tensor) -> Tensor:
        return sum_of_squares(x.reshape(-1, self.inputs))

    def output_squares(self, s: Tensor) -> tuple[Tensor, int]:
        s = s.reshape(-1, self.outputs)
        return sum_of_squares(s), s.shape[0]

    def placed(self, role: Role, S: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        return (S, H[-1:]) if role == "bias" else (S[:, None], H[None, : self.inputs])


@dataclass(frozen=True)
class EmbeddingLayer:
    """A Linear whose input is one-hot: the table is (inputs, outputs). A padding row is never looked up."""

    inputs: int
    outputs: int
    padding_idx: int | None
    bias: bool = False

    def input_squares(self, x: Tensor) -> Tensor:
        frequency = torch.bincount(x.reshape(-1), minlength=self.inputs).double()
        if self.padding_idx is not None:
            frequency[self.padding_idx] = 0.0
        return frequency

    def output_squares(self, s: Tensor) -> tuple[Tensor, int]:
        s = s.reshape(-1, self.outputs)
        return sum_of_squares(s), s.shape[0]

    def placed(self, role: Role, S: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        return H[:, None], S[None, :]


@dataclass(frozen=True)
class ConvLayer:
    """A Linear on every patch: W is (outputs, channels / groups, *kernel), h are the patches of all channels.

    Attributes:
        pad: elements added before and after each spatial dimension, the last dimension first (as `functional.pad`).
        mode: how it is filled, as `functional.pad` calls it.
    """

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    mode: str
    groups: int
    bias: bool

    @property
    def inputs(self) -> int:
        return self.channels * math.prod(self.kernel)

    def input_squares(self, x: Tensor) -> Tensor:
        """Squared and summed over the batch first: after that, only one image has patches to be taken of."""
        x = x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0)
        q = functional.pad(sum_of_squares(x).unsqueeze(0), self.pad, self.mode).squeeze(0)  # padding copies elements
        for d, (k, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), start=1):
            positions = (q.shape[d] - dilation * (k - 1) - 1) // stride + 1
            # element i of the kernel meets the elements i dilation, i dilation + stride, ... of the padded image
            q = q.unfold(d, (positions - 1) * stride + 1, dilation).narrow(d, 0, k)[..., ::stride]  # a view
        spatial = tuple(range(-len(self.kernel), 0))
        return q.sum(spatial).reshape(-1)  # (channels, *kernel) -> (inputs,)

    def output_squares(self, s: Tensor) -> tuple[Tensor, int]:
        s = s if s.dim() == len(self.kernel) + 2 else s.unsqueeze(0)
        return sum_of_squares(s).flatten(1).sum(1), s.numel() // self.outputs

    def placed(self, role: Role, S: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        if role == "bias":
            return S, H[-1:]
        rows = S.reshape(-1, 1, *(1 for _ in self.kernel))
        columns = H[: self.inputs].reshape(self.groups, self.channels // self.groups, *self.kernel)
        return rows, columns.repeat_interleave(self.outputs // self.groups, 0) if self.groups > 1 else columns


def layer_of(module: nn.Module) -> Layer | None:
    """The `Layer` of a module, or None: another kind, or a subclass that computes something else.

    The output projection of `nn.MultiheadAttention` is None too: it is a Linear that is never called.
    """
    forward = type(module).forward
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return LinearLayer(module.in_features, module.out_features, module.bias is not None)
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return EmbeddingLayer(module.num_embeddings, module.embedding_dim, module.padding_idx)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and forward in (
        nn.Conv1d.forward,
        nn.Conv2d.forward,
        nn.Conv3d.forward,
    ):
        return ConvLayer(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            tuple(module.stride),
            tuple(module.dilation),
            _padding(module.padding, module.kernel_size, module.dilation),
            "constant" if module.padding_mode == "zeros" else module.padding_mode,
            module.groups,
            module.bias is not None,
        )
    return None


def _padding(padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The padding of a convolution in the order of `functional.pad`: (before, after) from the last dimension."""
    if padding == "valid":
        pairs = [(0, 0) for _ in kernel]
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(int(n), int(n)) for n in padding]
    return tuple(n for pair in reversed(pairs) for n in pair)
