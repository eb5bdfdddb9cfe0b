"""The masks of a whole model, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lth_fast.nn.masked import MaskedLayer, mask_layer, unmask_layer
from lth_fast.nn.masked_conv2d import MaskedConv2d
from lth_fast.nn.masked_linear import MaskedLinear

_TWINS: dict[type[nn.Module], type[MaskedLayer]] = {nn.Linear: MaskedLinear, nn.Conv2d: MaskedConv2d}


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of ``model``, by the name of their weight (``"net.0.weight"``), in registration order."""
    return {_weight_name(name): layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of ``model``: parameter name → bool tensor of the parameter's shape, ``True`` where it survives."""
    return {name: layer.mask for name, layer in masked_layers(model).items()}


def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set masks by parameter name; plain ``nn.Linear`` and ``nn.Conv2d`` layers become their masked twins in place.

    Pruned weights and their gradients become 0 at once. An optimizer that is already at work has its momentum and
    moments cleared at the pruned places before its next step. Layers not named keep what they have.

    Args:
        model: Any module.
        masks: Parameter name (``"net.0.weight"``) → bool tensor of the parameter's shape. All are checked before the
            first one is set.

    Returns:
        ``model``.

    Raises:
        KeyError: A name is not a parameter of ``model``.
        TypeError: A mask is not bool, or the parameter is not the weight of an exact ``nn.Linear`` or ``nn.Conv2d``.
        ValueError: A mask has another shape than its parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers: dict[str, nn.Module] = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise KeyError(f"masks: the model has no parameter {name!r}; it has: {', '.join(parameters)}")
        shape = list(parameters[name].shape)
        if not isinstance(mask, Tensor) or str(mask.dtype) != "torch.bool":
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"masks[{name!r}] must be a bool tensor of shape {shape}, got {given}")
        if list(mask.shape) != shape:
            raise ValueError(f"masks[{name!r}] must have the parameter's shape {shape}, got {list(mask.shape)}")
        owner, _, attribute = name.rpartition(".")
        layer = model.get_submodule(owner)
        if attribute != "weight" or not (isinstance(layer, MaskedLayer) or type(layer) in _TWINS):
            raise TypeError(
                f"masks[{name!r}]: only the weight of an nn.Linear or nn.Conv2d (no subclass) can carry a mask, "
                f"this is {attribute!r} of {type(layer).__name__}"
            )
        layers[name] = layer
    for name, layer in layers.items():
        if isinstance(layer, MaskedLayer):
            layer.mask = masks[name]
        else:
            mask_layer(layer, masks[name], _TWINS[type(layer)])
    return model


def restore(model: nn.Module) -> nn.Module:
    """Turn every masked layer of ``model`` back into its plain class in place, zeros where the masks pruned.

    Returns:
        ``model``, whose parameters are the same objects as before.
    """
    for layer in list(masked_layers(model).values()):
        unmask_layer(layer)
    return model


def _weight_name(layer_name: str) -> str:
    return f"{layer_name}.weight" if layer_name else "weight"
