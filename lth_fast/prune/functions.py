"""The pruning functions of ``torch.nn.utils.prune``, by name and arguments, without its hooks.

A layer that is pruned becomes a masked layer in place and keeps its parameter. Repeated calls prune among survivors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import masks, restore, set_masks
from lth_fast.prune.layers import layer_mask
from lth_fast.prune.magnitude import prune_smallest


def l1_unstructured(module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None) -> nn.Module:
    """Prune the surviving weights of ``module`` that have the smallest magnitude; ties fall to the lowest index.

    Args:
        module: An ``nn.Linear`` or ``nn.Conv2d`` (no subclass), plain or masked.
        name: ``"weight"``.
        amount: Share of the survivors in [0, 1] if a float (rounded to the nearest count, halves to even, as stock
            does), their number if an int.
        importance_scores: Tensor of the weight's shape whose magnitudes to rank by, instead of the weight's own.

    Returns:
        ``module``.

    Raises:
        ValueError: ``amount`` is out of range, a score is NaN, or the module carries ``torch.nn.utils.prune`` hooks.
    """
    weight, mask = _parameter(module, name)
    scores = _scores(weight, importance_scores, "importance_scores")
    k = count_to_prune(amount, _survivors(weight, mask))
    set_masks(module, {name: prune_smallest(scores.abs(), k, mask)})
    return module


def random_unstructured(module: nn.Module, name: str, amount: float) -> nn.Module:
    """Prune surviving weights of ``module`` at random, drawn from torch's global generator.

    Arguments and errors are those of :func:`l1_unstructured`.
    """
    weight, mask = _parameter(module, name)
    scores = torch.rand(weight.shape, device=weight.device)
    set_masks(module, {name: prune_smallest(scores, count_to_prune(amount, _survivors(weight, mask)), mask)})
    return module


def custom_from_mask(module: nn.Module, name: str, mask: Tensor) -> nn.Module:
    """Prune where ``mask`` (bool, or zeros and ones, of the parameter's shape) is 0, beside what is pruned already."""
    weight, before = _parameter(module, name)
    if mask.shape != weight.shape:
        raise ValueError(f"mask must have the shape of {name} {list(weight.shape)}, got {list(mask.shape)}")
    wanted = mask.to(weight.device) != 0
    set_masks(module, {name: wanted if before is None else wanted & before})
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: type[stock.BasePruningMethod],
    importance_scores: Mapping[tuple[nn.Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prune several parameters with one threshold over all of their survivors.

    Args:
        parameters: ``(module, name)`` pairs, as :func:`~lth_fast.prune.fetch_layers` gives them.
        pruning_method: A class of ``torch.nn.utils.prune`` that prunes single weights (``L1Unstructured``,
            ``RandomUnstructured``, or one of your own). For ``L1Unstructured`` ties fall to the lowest
            (parameter, index); others are asked for their mask.
        importance_scores: ``(module, name)`` → tensor to rank by instead of the parameter.
        kwargs: For ``pruning_method``: ``amount``, a share of all survivors in [0, 1] or a count.

    Raises:
        TypeError: ``pruning_method`` does not prune single weights.
        ValueError: As :func:`l1_unstructured`.
    """
    pairs = list(parameters)
    if not pairs:
        raise ValueError("parameters: expected (module, name) pairs, got none")
    if getattr(pruning_method, "PRUNING_TYPE", None) != "unstructured":
        raise TypeError(f"pruning_method: expected one that prunes single weights, got {pruning_method.__name__}")
    given = dict(importance_scores or {})
    found = [_parameter(module, name) for module, name in pairs]
    scores = [
        _scores(weight, given.get(pair), f"importance_scores[{pair[1]!r}]")
        for pair, (weight, _) in zip(pairs, found, strict=True)
    ]
    shapes = [weight.shape for weight, _ in found]
    before = [
        torch.ones(weight.shape, dtype=torch.bool, device=weight.device) if mask is None else mask
        for weight, mask in found
    ]
    flat_scores = torch.cat([score.reshape(-1) for score in scores])
    flat_before = torch.cat([mask.reshape(-1) for mask in before])
    if pruning_method is stock.L1Unstructured:
        amount = kwargs.pop("amount")
        if kwargs:
            raise TypeError(f"global_unstructured: unexpected arguments for L1Unstructured: {', '.join(kwargs)}")
        after = prune_smallest(flat_scores.abs(), count_to_prune(amount, int(flat_before.sum())), flat_before)
    else:
        method = pruning_method(**kwargs)
        survivors = flat_before.nonzero().squeeze(1)
        kept = method.compute_mask(flat_scores[survivors], torch.ones_like(flat_scores[survivors])) != 0
        after = torch.zeros_like(flat_before)
        after[survivors[kept]] = True
    parts = after.split([shape.numel() for shape in shapes])
    for (module, name), part, shape in zip(pairs, parts, shapes, strict=True):
        set_masks(module, {name: part.reshape(shape)})


def is_pruned(module: nn.Module) -> bool:
    """Whether ``module`` or a module inside it carries a mask, ours or that of ``torch.nn.utils.prune``."""
    return bool(masks(module)) or stock.is_pruned(module)


def remove(module: nn.Module, name: str) -> nn.Module:
    """Make the pruning of ``module`` permanent: the mask goes, zeros stay in the parameter.

    Raises:
        ValueError: The parameter is not pruned.
    """
    if name not in masks(module):
        raise ValueError(f"name: parameter {name!r} of this {type(module).__name__} is not pruned")
    return restore(module)


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


def _parameter(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    if stock.is_pruned(module):
        raise ValueError(
            f"module: this {type(module).__name__} is pruned by torch.nn.utils.prune; make it permanent with its "
            "remove(), or keep using its functions"
        )
    return getattr(module, name), layer_mask(module)


def _survivors(weight: Tensor, mask: Tensor | None) -> int:
    return weight.numel() if mask is None else int(mask.sum())


def _scores(weight: Tensor, given: Tensor | None, argument: str) -> Tensor:
    scores = weight.detach() if given is None else given.detach()
    if scores.shape != weight.shape:
        raise ValueError(f"{argument} must have the parameter's shape {list(weight.shape)}, got {list(scores.shape)}")
    return scores
