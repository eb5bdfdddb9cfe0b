"""Pruning a whole model by a rate, as the reference project's functions of these names promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.nn import broadcast_masks, masks, restore, share_masks
from lth_fast.nn.attributes import Model
from lth_fast.nn.masked_parameter import mask_on, unmask_parameter
from lth_fast.nn.model import masked_for_a_while
from lth_fast.prune.by_score import prune_by_score
from lth_fast.prune.functions import global_unstructured, l1_unstructured
from lth_fast.prune.layers import held_parameter, prunable

PruneMethod = Callable[..., Any]


def prune_all(model: Model, rate: float, prune_method: PruneMethod = l1_unstructured) -> Model:
    """Prune every prunable layer by ``rate``, the output layer (the last Linear or Conv2d) by half of it.

    A weight that several modules share is pruned once, in all of them; it is the output layer's if that is among them.
    Frankle & Carbin 2019, Figure 2: layer-wise, the output layer at half the rate.

    Args:
        model: Any module; its layers are pruned in place. Sparse layers become masked ones with new Parameters:
            convert and make the optimizer afterwards.
        rate: Share of the survivors of each layer, 0 to 1.
        prune_method: Called as ``prune_method(layer, name=..., amount=...)`` for one layer after the other; ours or one
            of ``torch.nn.utils.prune``.

    Returns:
        ``model``. Where a process group of ``torch.distributed`` has several processes, all have the masks of rank 0.

    Raises:
        ValueError: ``rate`` is out of range, there is nothing to prune, or a survivor is NaN or infinite.
        TypeError: A weight cannot carry a mask (see :func:`lth_fast.nn.set_masks`). Magnitude pruning has then changed
            nothing.
    """
    return _prune(model, (nn.Linear, nn.Conv2d), rate, rate / 2, prune_method)


def prune_fc(model: Model, rate: float, prune_method: PruneMethod = l1_unstructured) -> Model:
    """Prune the Linear layers by ``rate``, the last of them by half of it. Otherwise as :func:`prune_all`."""
    return _prune(model, (nn.Linear,), rate, rate / 2, prune_method)


def prune_conv(model: Model, rate: float, prune_method: PruneMethod = l1_unstructured) -> Model:
    """Prune the convolutions by ``rate``. Otherwise as :func:`prune_all`."""
    return _prune(model, (nn.Conv2d,), rate, rate, prune_method)


def prune_conv_globally(
    model: Model, rate: float, pruning_class: type[stock.BasePruningMethod] = stock.L1Unstructured
) -> Model:
    """Prune ``rate`` of all convolution weights, one threshold over all of them. Otherwise as :func:`prune_all`."""
    _check_rate(rate)
    with masked_for_a_while(model):
        layers = _layers(model, (nn.Conv2d,))
        share_masks(model)
        global_unstructured([(layer, "weight") for layer in layers.values()], pruning_class, amount=float(rate))
    return broadcast_masks(share_masks(model))


def _layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    layers = {name: layer for name, layer in prunable(model).items() if isinstance(layer, kinds)}
    if not layers:
        expected = " or ".join(f"nn.{kind.__name__}" for kind in kinds)
        raise ValueError(f"model: {type(model).__name__} has no {expected} to prune")
    return layers


def _prune(
    model: Model,
    kinds: tuple[type[nn.Module], ...],
    rate: float,
    last_rate: float,
    prune_method: PruneMethod,
) -> Model:
    _check_rate(rate)
    with masked_for_a_while(model):
        layers = _layers(model, kinds)
        rates = {name: float(rate) for name in layers} | {next(reversed(layers)): float(last_rate)}
        if prune_method is l1_unstructured:  # all layers in one go: none is pruned where another one is refused
            return prune_by_score(model, rates)
        share_masks(model)
        for name, layer in layers.items():
            mask = masks(layer).get("weight")
            if mask is not None and not stock.is_pruned(layer) and _uses_stock(prune_method, layer, rates[name]):
                if mask_on(layer, "weight") is not None:  # stock wants a Parameter there
                    unmask_parameter(layer, "weight")
                stock.custom_from_mask(layer, "weight", mask)  # or it would rank what is pruned, too
            prune_method(layer, name="weight", amount=rates[name])
            if stock.is_pruned(layer):
                _share_stock_mask(model, layer, "weight")
    return broadcast_masks(share_masks(model))


def _uses_stock(prune_method: PruneMethod, layer: nn.Module, rate: float) -> bool:
    """Whether ``prune_method`` is of ``torch.nn.utils.prune``, which knows no mask of ours: a plain copy shows it."""
    trial = restore(copy.deepcopy(layer))
    with torch.random.fork_rng([parameter.device for parameter in trial.parameters() if parameter.is_cuda]):
        prune_method(trial, name="weight", amount=rate)
    return stock.is_pruned(trial)


def _share_stock_mask(model: nn.Module, layer: nn.Module, name: str) -> None:
    """Put a mask of ``torch.nn.utils.prune`` on the other modules that hold the same Parameter."""
    parameter, mask = held_parameter(layer, name), getattr(layer, f"{name}_mask")
    for module in model.modules():
        for other, held in list(module._parameters.items()):
            if held is parameter and module is not layer:
                stock.custom_from_mask(module, other.removesuffix("_orig"), mask)


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
