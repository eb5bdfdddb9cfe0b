"""Pruning a whole model by a rate, as the reference project's functions of these names promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.nn import broadcast_masks
from lth_fast.prune.functions import global_unstructured, l1_unstructured
from lth_fast.prune.layers import fetch_layers

PruneMethod = Callable[..., Any]


def prune_all(model: nn.Module, rate: float, prune_method: PruneMethod = l1_unstructured) -> nn.Module:
    """Prune every prunable layer by ``rate``, the output layer (the last Linear or Conv2d) by half of it.

    Frankle & Carbin 2019, Figure 2: layer-wise, the output layer at half the rate.

    Args:
        model: Any module; its layers are pruned in place.
        rate: Share of the survivors of each layer, 0 to 1.
        prune_method: Called as ``prune_method(layer, name=..., amount=...)``; ours or one of ``torch.nn.utils.prune``.

    Returns:
        ``model``. Where a process group of ``torch.distributed`` has several processes, all have the masks of rank 0.

    Raises:
        ValueError: ``rate`` is out of range, or there is nothing to prune.
    """
    layers = _some(fetch_layers(model), model, "nn.Linear or nn.Conv2d")
    _prune(layers[:-1], rate, prune_method)
    _prune(layers[-1:], rate / 2, prune_method)
    return broadcast_masks(model)


def prune_fc(model: nn.Module, rate: float, prune_method: PruneMethod = l1_unstructured) -> nn.Module:
    """Prune the Linear layers by ``rate``, the last of them by half of it. Otherwise as :func:`prune_all`."""
    layers = _some([pair for pair in fetch_layers(model) if isinstance(pair[0], nn.Linear)], model, "nn.Linear")
    _prune(layers[:-1], rate, prune_method)
    _prune(layers[-1:], rate / 2, prune_method)
    return broadcast_masks(model)


def prune_conv(model: nn.Module, rate: float, prune_method: PruneMethod = l1_unstructured) -> nn.Module:
    """Prune the convolutions by ``rate``. Otherwise as :func:`prune_all`."""
    _prune(_some(_convolutions(model), model, "nn.Conv2d"), rate, prune_method)
    return broadcast_masks(model)


def prune_conv_globally(
    model: nn.Module, rate: float, pruning_class: type[stock.BasePruningMethod] = stock.L1Unstructured
) -> nn.Module:
    """Prune ``rate`` of all convolution weights, one threshold over all of them. Otherwise as :func:`prune_all`."""
    _check_rate(rate)
    global_unstructured(_some(_convolutions(model), model, "nn.Conv2d"), pruning_class, amount=float(rate))
    return broadcast_masks(model)


def _convolutions(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [pair for pair in fetch_layers(model) if isinstance(pair[0], nn.Conv2d)]


def _some(layers: list[tuple[nn.Module, str]], model: nn.Module, kind: str) -> list[tuple[nn.Module, str]]:
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no {kind} to prune")
    return layers


def _prune(layers: list[tuple[nn.Module, str]], rate: float, prune_method: PruneMethod) -> None:
    _check_rate(rate)
    for layer, name in layers:
        prune_method(layer, name=name, amount=float(rate))


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
