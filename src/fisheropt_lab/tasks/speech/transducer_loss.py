"""The loss of a transducer (RNN-T, Graves 2012): minus the log of the summed probability of every alignment.

A path walks from frame 0 to the end, with u labels written so far. At (t, u) it either writes label u + 1 and stays in
the frame, or emits a blank and goes on to frame t + 1; it ends with a blank from the last frame, all U labels written:

    alpha(t, u) = log P(to be at (t, u))   = logaddexp(alpha(t-1, u) + blank(t-1, u), alpha(t, u-1) + label(t, u-1))
    beta(t, u)  = log P(the rest | (t, u)) = logaddexp(blank(t, u) + beta(t+1, u),    label(t, u) + beta(t, u+1))
    log P       = alpha(T-1, U) + blank(T-1, U)

and the gradient of -log P with respect to a log-probability is minus the probability that a path uses it. Computed in
float64 along the diagonals t + u = d, where every node of one depends only on those of the one before: T + U vector
operations for a batch, and exact, as no cumulative sums are subtracted from one another.

Shape letters: B utterances, T frames, U labels of the longest, D = T + U diagonals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

NEVER = -torch.inf


def transducer_loss(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """-log P of each utterance, in nats: (B,), in the dtype of the arguments.

    Args:
        blank: (B, T, U + 1), log-probability of a blank at each node.
        label: (B, T, U), log-probability of the next label at each node.
        frames: (B,) int64, the frames of each utterance, 1 to T; what is beyond them may be anything.
        labels: (B,) int64, the labels of each utterance, 0 to U.

    Raises:
        ValueError: shapes that do not fit, or numbers of frames or labels out of their range.
    """
    if blank.dim() != 3 or label.shape != (blank.shape[0], blank.shape[1], blank.shape[2] - 1):
        raise ValueError(
            f"blank must be (B, T, U + 1) and label (B, T, U), got {tuple(blank.shape)} and {tuple(label.shape)}"
        )
    if bool((frames < 1).any()) or bool((frames > blank.shape[1]).any()):
        raise ValueError(f"frames must be in [1, {blank.shape[1]}], got {frames.tolist()}")
    if bool((labels < 0).any()) or bool((labels > label.shape[2]).any()):
        raise ValueError(f"labels must be in [0, {label.shape[2]}], got {labels.tolist()}")
    loss: Tensor = _Paths.apply(blank, label, frames, labels)  # type: ignore[no-untyped-call]
    return loss


class _Paths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        B, T, nodes = blank.shape
        t = torch.arange(T, device=blank.device)[:, None]  # (T, 1)
        u = torch.arange(nodes, device=blank.device)  # (U+1,)
        inside = (t < frames[:, None, None]) & (u <= labels[:, None, None])  # (B, T, U+1)
        writes = (t < frames[:, None, None]) & (u[:-1] < labels[:, None, None])  # (B, T, U)
        stay = torch.where(writes, label.double(), NEVER)  # (B, T, U)
        stay = torch.nn.functional.pad(stay, (0, 1), value=NEVER)  # (B, T, U+1)
        go, write = _skew(torch.where(inside, blank.double(), NEVER)), _skew(stay)  # (B, D, U+1) each
        last = frames + labels - 1  # (B,), the diagonal of the last node
        utterance = torch.arange(B, device=blank.device)

        alpha = torch.full_like(go, NEVER)  # (B, D, U+1)
        alpha[:, 0, 0] = 0
        for d in range(1, alpha.shape[1]):
            alpha[:, d] = alpha[:, d - 1] + go[:, d - 1]
            alpha[:, d, 1:] = torch.logaddexp(alpha[:, d, 1:], alpha[:, d - 1, :-1] + write[:, d - 1, :-1])
        log_p = alpha[utterance, last, labels] + go[utterance, last, labels]  # (B,)

        after = torch.full_like(go[:, 0], NEVER)  # (B, U+1), beta of the next diagonal
        uses_go, uses_write = torch.zeros_like(go), torch.zeros_like(go)  # (B, D, U+1)
        end = torch.nn.functional.one_hot(labels, nodes).bool()  # (B, U+1)
        for d in range(alpha.shape[1] - 1, -1, -1):
            after = torch.where(end & (last == d)[:, None], 0.0, after)  # the path has ended
            written = torch.nn.functional.pad(after[:, 1:], (0, 1), value=NEVER)  # (B, U+1)
            uses_go[:, d] = _probability(alpha[:, d] + go[:, d] + after, log_p)
            uses_write[:, d] = _probability(alpha[:, d] + write[:, d] + written, log_p)
            after = torch.logaddexp(go[:, d] + after, write[:, d] + written)
        ctx.save_for_backward(_unskew(uses_go, T).to(blank.dtype), _unskew(uses_write, T)[..., :-1].to(label.dtype))
        return -log_p.to(blank.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        uses_go, uses_write = ctx.saved_tensors
        grad = -grad[:, None, None]  # (B, 1, 1)
        return grad * uses_go, grad * uses_write, None, None


def _probability(path: Tensor, log_p: Tensor) -> Tensor:
    """exp(path - log P), and 0 where no path leads: (B, U+1), (B,) -> (B, U+1)"""
    return torch.where(path > NEVER, path - log_p[:, None], NEVER).exp()


def _skew(x: Tensor) -> Tensor:
    """x(t, u) moved to (t + u, u), the rest filled with NEVER: (B, T, N) -> (B, T + N - 1, N)"""
    B, T, N = x.shape
    rows = torch.nn.functional.pad(x.transpose(1, 2), (0, N), value=NEVER)  # (B, N, T + N)
    return rows.reshape(B, -1)[:, : N * (T + N - 1)].view(B, N, T + N - 1).transpose(1, 2)


def _unskew(x: Tensor, T: int) -> Tensor:
    """The inverse of `_skew`: (B, T + N - 1, N) -> (B, T, N)"""
    B, _, N = x.shape
    flat = torch.nn.functional.pad(x.transpose(1, 2).reshape(B, -1), (0, N))  # (B, N (T + N))
    return flat.view(B, N, T + N)[..., :T].transpose(1, 2)


def node_log_probabilities(
    joint: Callable[[Tensor, Tensor], Tensor],
    encoded: Tensor,
    predicted: Tensor,
    targets: Tensor,
    at_once: int = 1 << 22,
) -> tuple[Tensor, Tensor]:
    """blank (B, T, U + 1) and label (B, T, U) of `transducer_loss`, without the logits of all nodes ever existing.

    The joint network is run for a few frames at a time, and again in the backward pass.

    Args:
        joint: encoded (B, t, E) and predicted (B, U + 1, P) to logits (B, t, U + 1, V), of which 0 is the blank.
        encoded: (B, T, E).
        predicted: (B, U + 1, P), what has been read of the labels before each.
        targets: (B, U) int64 labels, 1 to V - 1; what is beyond an utterance may be any of them.
        at_once: nodes whose logits may exist at the same time.
    """
    B, T, _ = encoded.shape
    nodes = predicted.shape[1]
    frames = max(1, at_once // (B * nodes))
    index = targets[:, None, :, None]  # (B, 1, U, 1)

    def some(part: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        log_p = joint(part, predicted).float().log_softmax(-1)  # (B, t, U+1, V)
        label = log_p[:, :, :-1].gather(-1, index.expand(-1, part.shape[1], -1, -1))  # (B, t, U, 1)
        return log_p[..., 0], label.squeeze(-1)

    parts = [
        checkpoint(some, encoded[:, first : first + frames], predicted, use_reentrant=False)
        for first in range(0, T, frames)
    ]
    blank, label = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
    return blank, label
