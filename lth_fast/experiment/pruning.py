"""From the flags on pruning to the function that prunes a model once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.models import output_layer, shortcut_layers
from lth_fast.prune import global_unstructured, l1_unstructured
from lth_fast.prune.layers import prunable

ROLES = ("output", "shortcuts")
SCOPES = ("layerwise", "global")


def pruning_function(
    scope: str, prune_rate: float, fc_rate: float | None, whole: Collection[str], bias: bool
) -> Callable[[nn.Module], nn.Module]:
    """The function that prunes a level's model for the next one.

    Args:
        scope: ``layerwise`` or ``global`` (one threshold over all layers that are pruned).
        prune_rate: Share of the survivors to prune.
        fc_rate: The same for Linear layers, ``None``: as ``prune_rate``. Layer-wise, the output layer gets half of the
            rate of its kind.
        whole: Roles of layers that are not pruned: ``output``, ``shortcuts``.
        bias: Prune the biases of the pruned layers as well.
    """
    function = prune_globally if scope == "global" else prune_layerwise
    return partial(
        function,
        prune_rate=prune_rate,
        fc_rate=prune_rate if fc_rate is None else fc_rate,
        whole=frozenset(whole),
        bias=bias,
    )


def prune_layerwise(
    model: nn.Module, prune_rate: float, fc_rate: float, whole: Collection[str] = (), bias: bool = False
) -> nn.Module:
    """Prune each layer by the rate of its kind, the output layer by half of it (1803.03635, figure 2)."""
    output = output_layer(model)
    for name, layer in _pruned_layers(model, whole).items():
        rate = fc_rate if isinstance(layer, nn.Linear) else prune_rate
        rate = rate / 2 if name == output else rate
        for parameter in _parameters(layer, bias):
            l1_unstructured(layer, parameter, float(rate))
    return model


def prune_globally(
    model: nn.Module, prune_rate: float, fc_rate: float, whole: Collection[str] = (), bias: bool = False
) -> nn.Module:
    """Prune by one threshold over all layers but the output layer; with two rates, one over each kind of layer."""
    layers = _pruned_layers(model, {*whole, "output"})
    linear: list[nn.Module] = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
    others = [layer for layer in layers.values() if not isinstance(layer, nn.Linear)]
    groups: list[tuple[list[nn.Module], float]] = [(list(layers.values()), prune_rate)]
    if fc_rate != prune_rate:
        groups = [(linear, fc_rate), (others, prune_rate)]
    for group, rate in groups:
        pairs = [(layer, parameter) for layer in group for parameter in _parameters(layer, bias)]
        if pairs:
            global_unstructured(pairs, stock.L1Unstructured, amount=float(rate))
    return model


def _pruned_layers(model: nn.Module, whole: Collection[str]) -> dict[str, nn.Module]:
    """The layers that are pruned, by layer name."""
    kept = set()
    if "output" in whole:
        kept.add(output_layer(model))
    if "shortcuts" in whole:
        kept.update(shortcut_layers(model))
    layers = {name.removesuffix("weight").removesuffix("."): layer for name, layer in prunable(model).items()}
    return {name: layer for name, layer in layers.items() if name not in kept}


def _parameters(layer: nn.Module, bias: bool) -> list[str]:
    return ["weight", "bias"] if bias and getattr(layer, "bias", None) is not None else ["weight"]
