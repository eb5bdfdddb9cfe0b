"""The masks of a whole model, by parameter name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.masked import MaskedLayer, check_mask, mask_layer, unmask_layer
from lth_fast.nn.masked_conv2d import MaskedConv2d
from lth_fast.nn.masked_linear import MaskedLinear
from lth_fast.nn.masked_parameter import MaskedParameter, mask_parameter, masked_parameter, unmask_parameter
from lth_fast.nn.sparse import SparseLayer
from lth_fast.nn.sparse_conv2d import SparseConv2d
from lth_fast.nn.sparse_linear import SparseLinear

TWINS: dict[type[nn.Module], type[MaskedLayer]] = {nn.Linear: MaskedLinear, nn.Conv2d: MaskedConv2d}
SPARSE: dict[type[nn.Module], type[SparseLayer]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of ``model``, by the name of their weight (``"net.0.weight"``), in registration order."""
    return {_join(name, "weight"): layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of ``model``, by the name their weight has in ``state_dict``, in registration order."""
    return {_join(name, "weight"): layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def masked_parameters(model: nn.Module) -> dict[str, MaskedLayer | MaskedParameter]:
    """What holds each mask of ``model``, by parameter name, in registration order."""
    holders: dict[str, MaskedLayer | MaskedParameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            holders[_join(name, "weight")] = module
        if parametrize.is_parametrized(module):
            for parameter in module.parametrizations:
                entry = masked_parameter(module, parameter)
                if entry is not None:
                    holders[_join(name, parameter)] = entry
    return holders


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of ``model``: parameter name → bool tensor of the parameter's shape, ``True`` where it survives."""
    found = {name: holder.mask for name, holder in masked_parameters(model).items()}
    return found | {name: layer.mask for name, layer in sparse_layers(model).items()}


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()`` with the plain model's keys, whatever carries a mask, zeros where the masks prune."""
    for holder in masked_parameters(model).values():
        if isinstance(holder, MaskedLayer):
            holder.masked_weight()
        else:
            holder.apply_mask()
    return {_PARAMETRIZED.sub(r"\1", name): value for name, value in model.state_dict().items()}


def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set masks by parameter name.

    Plain ``nn.Linear`` and ``nn.Conv2d`` layers become their masked twins in place when their weight gets a mask; any
    other parameter (a bias, a subclass's weight) is masked through ``torch.nn.utils.parametrize``, which changes its
    key in ``state_dict``. Pruned weights and their gradients become 0 at once. An optimizer that is already at work has
    its momentum and moments cleared at the pruned places before its next step. Parameters not named keep what they
    have.

    Args:
        model: Any module.
        masks: Parameter name (``"net.0.weight"``) → bool tensor of the parameter's shape. All are checked before the
            first one is set.

    Returns:
        ``model``.

    Raises:
        KeyError: A name is not a parameter of ``model``.
        TypeError: A mask is not bool, the layer is sparse, the parameter is not a floating-point one, several modules
            share it, or it is a recurrent layer's, which reads its parameters around any mask.
        ValueError: A mask has another shape than its parameter, or the parameter is on the meta device.
    """
    for name in masks:
        if name in sparse_layers(model):
            raise TypeError(
                f"masks[{name!r}]: expected a layer that can take a mask, got a sparse one, whose mask is part of its "
                "Parameter; lth_fast.nn.convert(model, masks) makes it anew"
            )
    holders = masked_parameters(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    plain: dict[str, tuple[nn.Module, str]] = {}
    for name, mask in masks.items():
        if name in holders:
            check_mask(mask, holders[name].weight, f"masks[{name!r}]")
            continue
        if name not in parameters:
            known = ", ".join(_PARAMETRIZED.sub(r"\1", parameter) for parameter in parameters)
            raise KeyError(f"masks: the model has no parameter {name!r}; it has: {known}")
        module, attribute = _owner(model, name)
        if isinstance(module, nn.RNNBase):
            raise TypeError(
                f"masks[{name!r}]: a {type(module).__name__} reads its parameters around any mask; use its cell"
            )
        check_mask(mask, parameters[name], f"masks[{name!r}]")
        for other, parameter in parameters.items():
            # The other module would read, and hand out gradients of, weights that the mask prunes.
            if parameter is parameters[name] and _owner(model, other)[0] is not module:
                raise TypeError(f"masks[{name!r}]: expected a weight of one module, got one shared with {other!r}")
        plain[name] = (module, attribute)
    # Twins first: a parametrization changes the layer's class, after which it is a subclass.
    for name in sorted(masks, key=lambda name: name in plain and plain[name][1] != "weight"):
        mask = masks[name]
        if name in holders:
            holders[name].mask = mask
            continue
        module, attribute = plain[name]
        if attribute == "weight" and type(module) in TWINS:
            mask_layer(module, mask, TWINS[type(module)])
        else:
            mask_parameter(module, attribute, mask)
    keep_masks_out_of_ddp(model)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Make every masked or sparse layer and parameter of ``model`` plain again in place, zeros where masks pruned.

    Returns:
        ``model``. Its parameters are the same objects as before, but for those of sparse layers: ``weight`` again
        instead of ``values``.
    """
    make_masked(model)
    for name, holder in masked_parameters(model).items():
        if isinstance(holder, MaskedParameter):
            unmask_parameter(*_owner(model, name))
    for layer in list(masked_layers(model).values()):
        unmask_layer(layer)
    model.__dict__.pop("_choices", None)
    keep_masks_out_of_ddp(model)
    return model


def keep_masks_out_of_ddp(model: nn.Module) -> None:
    """Tell ``DistributedDataParallel``, if it should wrap ``model``, not to broadcast masks and patterns every step."""
    ours = (MaskedLayer, MaskedParameter, SparseLayer)
    names = {
        _join(name, buffer)
        for name, module in model.named_modules()
        if isinstance(module, ours)
        for buffer in module._non_persistent_buffers_set
    }
    users = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ())) - getattr(model, "_ddp_masks", set())
    model._ddp_masks = names  # type: ignore[assignment]
    model._ddp_params_and_buffers_to_ignore = sorted(users | names)  # type: ignore[assignment]


def make_sparse(layer: MaskedLayer) -> None:
    """Turn a masked layer into its sparse form in place. The weight's gradient goes along."""
    sparse = SPARSE[layer.plain_class].from_dense(layer)
    if layer.weight.grad is not None:
        sparse.values.grad = layer.weight.grad[sparse.mask]
    mask_changes.forget(layer)
    _become(layer, sparse)


def make_masked(model: nn.Module) -> None:
    """Turn every sparse layer of ``model`` into its masked form in place. The gradient goes along."""
    for layer in sparse_layers(model).values():
        mask, gradient = layer.mask, layer.values.grad
        plain = layer.to_dense()
        if gradient is not None:
            plain.weight.grad = torch.zeros_like(plain.weight).masked_scatter_(mask, gradient)
        _become(layer, plain)
        mask_layer(layer, mask, TWINS[type(plain)])


def _become(layer: nn.Module, other: nn.Module) -> None:
    """Give ``layer`` class, parameters and buffers of ``other``; hooks and whatever a user has put on it stay."""
    own = {"mask_bits", *getattr(layer, "pattern_fields", ())}
    users = {name: buffer for name, buffer in layer._buffers.items() if name not in own}
    transient = layer._non_persistent_buffers_set - own
    for name in ("_seen_masked", "_survivors", "masks_gradient"):
        layer.__dict__.pop(name, None)
    layer.__class__ = other.__class__
    layer._parameters = other._parameters
    layer._buffers = {**users, **other._buffers}
    layer._non_persistent_buffers_set = transient | other._non_persistent_buffers_set


def _owner(model: nn.Module, parameter_name: str) -> tuple[nn.Module, str]:
    layer_name, _, attribute = parameter_name.rpartition(".")
    return model.get_submodule(layer_name), attribute


def _join(layer_name: str, parameter: str) -> str:
    return f"{layer_name}.{parameter}" if layer_name else parameter
