"""Pruning functions with the names and arguments of ``torch.nn.utils.prune`` and of the reference project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import set_masks
from lth_fast.prune.layers import fetch_layers, layer_mask
from lth_fast.prune.magnitude import prune_smallest


def l1_unstructured(module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None) -> nn.Module:
    """Prune the surviving weights of ``module`` that have the smallest magnitude.

    The signature of ``torch.nn.utils.prune.l1_unstructured``, without its hooks: ``module`` becomes a masked layer in
    place and ``module.weight`` stays the parameter. Repeated calls prune among the survivors.

    Args:
        module: An ``nn.Linear`` or ``nn.Conv2d`` (no subclass), plain or masked.
        name: ``"weight"``.
        amount: Share of the survivors in [0, 1] if a float (rounded to the nearest count, halves to even, as stock
            does), their number if an int.
        importance_scores: Tensor of the weight's shape to rank by instead of its magnitude.

    Returns:
        ``module``.

    Raises:
        ValueError: ``amount`` is out of range, or the module carries ``torch.nn.utils.prune`` hooks.
    """
    if stock.is_pruned(module):
        raise ValueError(
            f"module: this {type(module).__name__} is pruned by torch.nn.utils.prune; make it permanent with its "
            "remove(), or keep using its functions"
        )
    weight = getattr(module, name)
    mask = layer_mask(module)
    survivors = weight.numel() if mask is None else int(mask.sum())
    scores = weight.detach().abs() if importance_scores is None else importance_scores
    if scores.shape != weight.shape:
        raise ValueError(f"importance_scores must have shape {list(weight.shape)}, got {list(scores.shape)}")
    set_masks(module, {name: prune_smallest(scores, count_to_prune(amount, survivors), mask)})
    return module


def count_to_prune(amount: float, survivors: int) -> int:
    """Number of ``survivors`` that ``amount`` (a share in [0, 1], or a count) prunes, rounded as stock does."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise TypeError(f"amount must be a share in [0, 1] or a number of weights, got {amount!r}")
    if isinstance(amount, int):
        if not 0 <= amount <= survivors:
            raise ValueError(f"amount must be between 0 and the {survivors} survivors, got {amount}")
        return amount
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"amount must be a share in [0, 1] or a number of weights, got {amount}")
    return round(amount * survivors)


def prune_all(model: nn.Module, rate: float, prune_method: Callable[..., Any] = l1_unstructured) -> nn.Module:
    """Prune every prunable layer by ``rate``, the output layer (the last Linear or Conv2d) by half of it.

    Frankle & Carbin 2019, Figure 2: layer-wise, the output layer at half the rate.

    Args:
        model: Any module; its layers are pruned in place.
        rate: Share of the survivors of each layer, 0 to 1.
        prune_method: Called as ``prune_method(layer, name=..., amount=...)``; ours or one of ``torch.nn.utils.prune``.

    Returns:
        ``model``.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
    layers = fetch_layers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no nn.Linear or nn.Conv2d to prune")
    for layer, name in layers[:-1]:
        prune_method(layer, name=name, amount=float(rate))
    output, name = layers[-1]
    prune_method(output, name=name, amount=rate / 2)
    return model
