"""Which parameters of a model are pruned, and how much of them is gone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils import prune as stock

from lth_fast._survivors import count_kept
from lth_fast.nn import SparseLayer, masks
from lth_fast.nn.model import join, masked_parameters

LAZY = "of a lazy layer; run the model on an input first"
_WEIGHTED = (nn.Linear, nn.Conv2d, SparseLayer)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights are pruned, by parameter name (``"net.0.weight"``), in registration order.

    These are the weights of every ``nn.Linear`` and ``nn.Conv2d``, also masked, sparse or stock-pruned ones. Biases
    and normalisation layers are not pruned (Frankle & Carbin 2019). A weight that several of them share is there once,
    as the last one's: where that is the output layer, its weight counts as such.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _WEIGHTED):
            held = held_parameter(layer, "weight")
            key = id(layer if held is None else held)
            found.pop(key, None)
            found[key] = (join(name, "weight"), layer)
    return dict(found.values())


def held_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The Parameter behind ``module.name``, also where a mask or ``torch.nn.utils.prune`` computes the latter."""
    if parametrize.is_parametrized(module, name):
        computed: Any = module.parametrizations[name]  # type: ignore[index]
        return next(computed.parameters(recurse=False), None)
    return module._parameters.get(name, module._parameters.get(f"{name}_orig"))


def prunable_names(model: nn.Module, bias: bool = False) -> list[str]:
    """Names of the parameters that are pruned: the weights above and, with ``bias``, the same layers' biases."""
    names = []
    for name, layer in prunable(model).items():
        names.append(name)
        if bias and getattr(layer, "bias", None) is not None:
            names.append(name.removesuffix("weight") + "bias")
    return names


def fetch_layers(model: nn.Module, bias: bool = False) -> list[tuple[nn.Module, str]]:
    """The parameters to prune as ``(layer, name)`` pairs, the format of ``torch.nn.utils.prune``.

    They are the weights of :func:`prunable` and, with ``bias``, the same layers' biases. The last layer is the output
    layer.
    """
    names = (name.rpartition(".") for name in prunable_names(model, bias))
    return [(model.get_submodule(layer), parameter) for layer, _, parameter in names]


def pruned_by_stock(model: nn.Module) -> list[tuple[str, nn.Module, str, Tensor]]:
    """What ``torch.nn.utils.prune`` has pruned: a parameter's name in ``model``, module, name there and mask (bool)."""
    return [
        (join(name, hook._tensor_name), module, hook._tensor_name, getattr(module, f"{hook._tensor_name}_mask") != 0)
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, stock.BasePruningMethod)
    ]


def layer_mask(layer: nn.Module) -> Tensor | None:
    """The mask of a masked, sparse or stock-pruned layer's weight as a bool tensor, ``None`` for a plain one.

    Of one that is both, what both keep.
    """
    stock, ours = getattr(layer, "weight_mask", None), masks(layer).get("weight")
    if not isinstance(stock, Tensor):
        return ours
    return stock.bool() if ours is None else stock.bool() & ours


def sparsity(model: nn.Module) -> float:
    """Share of the prunable weights that masks remove, in percent (0 to 100).

    A weight that is zero by chance is a survivor: only masks count. Of a weight that modules share, those places
    survive that every mask on it keeps.

    Raises:
        ValueError: A mask is on the meta device, or a lazy layer has no shape yet.
    """
    kept: dict[int, Tensor] = {}
    for holder in masked_parameters(model).values():
        key = id(holder.weight)
        kept[key] = kept[key] & holder.mask if key in kept else holder.mask
    total = pruned = 0
    for name, layer in prunable(model).items():
        weight: Any = layer.weight
        if is_lazy(weight):
            raise ValueError(f"model: expected weights with a shape, got {name!r} {LAZY}")
        total += weight.numel()
        held = held_parameter(layer, "weight")
        mask = kept[id(held)] if held is not None and id(held) in kept else layer_mask(layer)
        if mask is not None and mask.is_meta:
            raise ValueError(f"model: expected masks with values, got that of {name!r} on the meta device")
        if mask is not None:
            pruned += mask.numel() - count_kept(mask)
    return 100.0 * pruned / total if total else 0.0
