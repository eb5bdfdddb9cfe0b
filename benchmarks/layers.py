"""A layer under a mask, ours and its rivals: what they are made of and what a training pass of them is."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lth_fast.nn import choices, convert


def exact_mask(shape: torch.Size, density: float) -> Tensor:
    """A random mask of exactly that density."""
    draw = torch.Generator().manual_seed(0)
    count = shape.numel()
    return (torch.randperm(count, generator=draw) < round(density * count)).reshape(shape)


def training_pass(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Forward and backward; gradients are dropped, as an optimizer's zero_grad does."""

    def work() -> None:
        layer(inputs).backward(gradient)
        inputs.grad = None
        layer.zero_grad()

    return work


def ours(layer: nn.Module, mask: Tensor, inputs: Tensor) -> tuple[nn.Module, str]:
    """``layer`` in the form that ``convert`` chooses, and which one that is."""
    # In a model of its own, after something that wants a gradient where the layer's input does.
    model = nn.Sequential(copy.deepcopy(layer))
    convert(model, {"0.weight": mask}, example_input=inputs.detach().requires_grad_(inputs.requires_grad))
    return model[0], choices(model)["0.weight"].form


def rivals(layer: nn.Module, mask: Tensor, inputs: Tensor, peers: bool = True) -> dict[str, nn.Module]:
    """The dense layer, torch's pruning, and with ``peers`` SparseProp and SparseLab where they are installed."""
    with torch.no_grad():
        layer.weight.mul_(mask)  # type: ignore[operator]
    stock = copy.deepcopy(layer)
    prune.custom_from_mask(stock, "weight", mask)
    found = {"dense": layer, "torch.nn.utils.prune": stock}
    if not peers or bool(mask.all()):
        return found
    if importlib.util.find_spec("sparseprop"):
        found["SparseProp"] = _sparseprop(layer, inputs)
    if importlib.util.find_spec("sparselab") and isinstance(layer, nn.Linear):
        import sparselab
        import sparselab.ops

        # It knows weights by their address, and would take this one for another that lay there before.
        sparselab.ops._transpose_cache.clear()
        found["SparseLab"] = sparselab.SparseLinear(
            layer.in_features, layer.out_features, sparsity=1 - float(mask.float().mean())
        )
    return found


def _sparseprop(layer: nn.Module, inputs: Tensor) -> nn.Module:
    if isinstance(layer, nn.Linear):
        from sparseprop.modules.linear import SparseLinear

        return SparseLinear.from_dense(copy.deepcopy(layer))
    from sparseprop.modules import sparsify_conv2d_auto

    # Times its two kernels and takes the faster one.
    return sparsify_conv2d_auto(copy.deepcopy(layer), tuple(inputs.shape))
