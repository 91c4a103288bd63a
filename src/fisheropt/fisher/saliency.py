"""What a weight is worth, and pruning by it (LeCun, Denker and Solla 1989, *Optimal Brain Damage*; Theis et al. 2018,
arXiv:1801.05787, with the Fisher information for the Hessian).

Setting one weight to 0 moves the parameters by d = -theta on one axis, and the model's predictions by, to second order,
KL = d' F d / 2 (arXiv:2405.12807, Equation 9)::

    saliency = theta^2 F / 2                                              elementwise, nats per unit of F
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["fisher_saliency", "prune_by_saliency"]


@torch.no_grad()
def fisher_saliency(model: nn.Module, fisher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``theta^2 F / 2``: by how many nats per unit the predictions change when a weight alone is set to 0.

    Args:
        model: whose parameters are meant.
        fisher: name of a parameter -> F, in its shape.

    Returns:
        Name -> saliency, in the shape of the parameter, in float32 or wider.

    Raises:
        ValueError: F names a parameter the model does not have, or has another shape.
    """
    params = dict(model.named_parameters())
    saliency = {}
    for name, F in fisher.items():
        if name not in params:
            raise ValueError(
                f"fisher has {name!r}, which is no parameter of the model; its names are those of named_parameters"
            )
        theta = params[name]
        if F.shape != theta.shape:
            raise ValueError(f"fisher[{name!r}] has shape {tuple(F.shape)}, the parameter {tuple(theta.shape)}")
        dtype = torch.promote_types(torch.promote_types(F.dtype, theta.dtype), torch.float32)
        saliency[name] = theta.to(dtype).square() * F.to(theta.device, dtype) / 2
    return saliency


def prune_by_saliency(
    model: nn.Module, saliency: Mapping[str, Tensor], amount: float, names: list[str] | None = None
) -> None:
    """Set the weights of least saliency to 0, over all parameters together, with `torch.nn.utils.prune`.

    Pruned weights stay 0 in further training; `torch.nn.utils.prune.remove` makes it permanent and the names of the
    parameters what they were.

    Args:
        model: changed in place.
        saliency: name of a parameter -> what each weight is worth, as from `fisher_saliency`.
        amount: how many weights: a fraction in [0, 1], or a number.
        names: of the parameters to prune; None: those of ``saliency`` with two dimensions or more, which leaves
            biases and norms alone.

    Raises:
        ValueError: a name has no saliency or is no parameter, or a weight is tied, so that it could not be pruned in
            one place.
    """
    from torch.nn.utils import prune  # torch imports it lazily, and so do we

    if names is None:
        names = [name for name, values in saliency.items() if values.dim() >= 2]
    aliases: dict[Tensor, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(p, []).append(name)
    params = dict(model.named_parameters())
    chosen, scores = [], {}
    for name in names:
        if name not in saliency or name not in params:
            missing = "saliency" if name not in saliency else "parameter of the model"
            raise ValueError(f"names has {name!r}, for which there is no {missing}")
        if saliency[name].shape != params[name].shape:
            raise ValueError(
                f"saliency[{name!r}] has shape {tuple(saliency[name].shape)}, the parameter {tuple(params[name].shape)}"
            )
        if len(aliases[params[name]]) > 1:
            raise ValueError(
                f"{' and '.join(aliases[params[name]])} are one tied weight, which cannot be pruned; leave it out"
            )
        owner, _, attribute = name.rpartition(".")
        key = (model.get_submodule(owner), attribute)
        chosen.append(key)
        scores[key] = saliency[name].to(params[name].device)
    if not chosen:
        raise ValueError(
            "there is nothing to prune: saliency has no parameter of two dimensions or more, or names is empty"
        )
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, importance_scores=scores, amount=amount)
