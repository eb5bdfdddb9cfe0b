"""The state of an optimizer by weight, whatever form the layers have: what outlives a change of masks or forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast.nn import SparseLayer, sparse_layers


def dense_optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """``optimizer.state_dict()`` as it would be if the layers were plain.

    What the optimizer keeps per survivor of a sparse layer takes the weight's shape, with zeros where it is pruned.

    Args:
        optimizer: Over parameters of ``model``.
        model: In any form.
    """

    def spread(layer: SparseLayer, value: Tensor) -> Tensor:
        return layer.spread(value) if value.shape == layer.values.shape else value

    return _translated(optimizer, model, optimizer.state_dict(), spread)


def load_dense_optimizer_state(optimizer: Optimizer, model: nn.Module, state: dict[str, Any]) -> None:
    """Load what :func:`dense_optimizer_state` gave, for the forms and masks that ``model`` has now."""

    def gather(layer: SparseLayer, value: Tensor) -> Tensor:
        return layer.collect(value) if value.shape == layer.weight_shape else value

    optimizer.load_state_dict(_translated(optimizer, model, state, gather))


def _translated(
    optimizer: Optimizer, model: nn.Module, state: dict[str, Any], change: Callable[[SparseLayer, Tensor], Tensor]
) -> dict[str, Any]:
    layers = {id(layer.values): layer for layer in sparse_layers(model).values()}
    entries = dict(state["state"])
    # A state dict numbers the parameters in the order of the groups.
    held = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(held):
        layer = layers.get(id(parameter))
        if layer is not None and number in entries:
            entries[number] = {
                key: change(layer, value) if isinstance(value, Tensor) else value
                for key, value in entries[number].items()
            }
    return {**state, "state": entries}
