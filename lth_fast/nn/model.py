"""The masks of a whole model, by parameter name."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lth_fast.nn.attributes import Model
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.masked import (
    MaskedLayer,
    attributes_of,
    check_mask,
    forget_state,
    mask_layer,
    names_beside,
    unmask_layer,
)
from lth_fast.nn.masked_conv2d import MaskedConv2d
from lth_fast.nn.masked_embedding import MaskedEmbedding
from lth_fast.nn.masked_linear import MaskedLinear
from lth_fast.nn.masked_parameter import MaskedParameter, mask_on, mask_parameter, unmask_parameter
from lth_fast.nn.sparse import SparseLayer
from lth_fast.nn.sparse_conv2d import SparseConv2d
from lth_fast.nn.sparse_linear import SparseLinear

TWINS: dict[type[nn.Module], type[MaskedLayer]] = {
    nn.Linear: MaskedLinear,
    nn.Conv2d: MaskedConv2d,
    nn.Embedding: MaskedEmbedding,
}
SPARSE: dict[type[nn.Module], type[SparseLayer]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
# What these forms have by names that the plain layer has not.
_NAMES_OF_FORMS = {
    kind: {"values"} | names_beside(kind, twin) | names_beside(kind, SPARSE.get(kind, twin))
    for kind, twin in TWINS.items()
}
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of ``model``, by the name of their weight (``"net.0.weight"``), in registration order."""
    return {join(name, "weight"): layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of ``model``, by the name their weight has in ``state_dict``, in registration order."""
    return {join(name, "weight"): layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def masked_parameters(model: nn.Module) -> dict[str, MaskedLayer | MaskedParameter]:
    """What holds each mask of ``model``, by parameter name, in registration order."""
    holders: dict[str, MaskedLayer | MaskedParameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            holders[join(name, "weight")] = module
        if parametrize.is_parametrized(module):
            for parameter in module.parametrizations:
                entry = mask_on(module, parameter)
                if entry is not None:
                    holders[join(name, parameter)] = entry
    return holders


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of ``model``: parameter name → bool tensor of the parameter's shape, ``True`` where it survives.

    A parameter that several modules share is there under each of its names, as in ``state_dict``; one of a module that
    has two names under the first. Masks of a model on the meta device have no values.
    """
    found = {name: holder.mask for name, holder in masked_parameters(model).items()}
    return found | {name: layer.mask for name, layer in sparse_layers(model).items()}


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()`` with the plain model's keys, whatever carries a mask, zeros where the masks prune."""
    for holder in masked_parameters(model).values():
        if isinstance(holder, MaskedLayer):
            holder.mask_what_was_written()
        else:
            holder.apply_mask()
    return _renamed(model.state_dict(), lambda name: _PARAMETRIZED.sub(r"\1", name))


def load_dense_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`dense_state` gave, whatever carries a mask here.

    A state that does not know the versions of its modules, from a safetensors file for instance, is taken to have those
    of ``model``.
    """
    own = model.state_dict()
    names = {_PARAMETRIZED.sub(r"\1", name): name for name in own}
    model.load_state_dict(_renamed(state, lambda name: names.get(name, name), own))


def _renamed(
    state: Mapping[str, Tensor], rename: Callable[[str], str], other: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """``state`` under other names, with the versions of modules that torch keeps beside it, else those of ``other``."""
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    versions = getattr(state, "_metadata", getattr(other, "_metadata", None))
    if versions is not None:
        renamed._metadata = versions  # type: ignore[attr-defined]
    return renamed


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Set masks by parameter name.

    Plain ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding`` layers become their masked twins in place when their weight
    gets a mask; any other parameter (a bias, a subclass's weight, that of a layer which a user has given an attribute
    called as one of the twin's, ``mask`` for instance) is masked through ``torch.nn.utils.parametrize``, which changes
    its key in ``state_dict``. A parameter that several modules share (tied weights) gets one mask in all
    of them, whichever name it is given under. Pruned weights and their gradients become 0 at once. An optimizer that is
    already at work has its momentum and moments cleared at the pruned places before its next step. Parameters not
    named keep what they have.

    Args:
        model: Any module.
        masks: Parameter name (``"net.0.weight"``) → bool tensor of the parameter's shape, on any device. All are
            checked before the first one is set.

    Returns:
        ``model``.

    Raises:
        KeyError: A name is not a parameter of ``model``.
        TypeError: A mask is not bool, the layer is sparse, the parameter is not a floating-point one, or one of its
            modules reads it around any mask: a recurrent layer, an embedding with sparse gradients, a parametrization
            of another kind.
        ValueError: A mask has another shape than its parameter, the parameter is on the meta device or a lazy layer's
            without a shape, two names of one parameter come with different masks, or the parameter is a view of memory
            that another one has, too, or expanded.
    """
    holders = masked_parameters(model)
    parameters: dict[str, Tensor] = {
        _PARAMETRIZED.sub(r"\1", name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    modules = dict(model.named_modules(remove_duplicate=False))
    sparse = {join(name, "weight") for name, module in modules.items() if isinstance(module, SparseLayer)}
    users = plain_users(model)
    held = {name: holder.masked_parameter for name, holder in holders.items()}
    names = {id(parameter): name for name, parameter in held.items() if parameter is not None}
    chosen: dict[int, tuple[str, Tensor]] = {}
    for given, mask in masks.items():
        # A module that has two names has its mask under the first of them.
        plain = _PARAMETRIZED.sub(r"\1", given)
        name = plain if plain in holders else names.get(id(parameters.get(plain)), plain)
        if name in sparse:
            raise TypeError(f"masks[{name!r}]: {_EXPECTED_NO_SPARSE_LAYER}")
        _refuse_computed(modules, name, holders)
        if name not in holders and id(parameters.get(name)) not in users:
            known = ", ".join(parameters)
            raise KeyError(f"masks: the model has no parameter {name!r}; it has: {known}")
        parameter = holders[name].weight if name in holders else parameters[name]
        check_mask(mask, parameter, f"masks[{name!r}]")
        for user, attribute in users.get(id(parameter), ()):
            check_user(user, attribute, f"masks[{name!r}]")
        first, other = chosen.setdefault(id(parameter), (name, mask))
        if not torch.equal(mask, other.to(mask.device)):
            raise ValueError(
                f"masks[{name!r}]: expected the mask of {first!r}, whose weight it shares, got another one"
            )
    _refuse_shared_memory(parameters, chosen)
    taking = [(user, mask) for key, (_, mask) in chosen.items() for user in users.get(key, ())]
    # Twins first: a parametrization changes the layer's class, after which it is a subclass.
    for (module, attribute), mask in sorted(taking, key=lambda user: not _becomes_a_twin(*user[0])):
        if _becomes_a_twin(module, attribute):
            mask_layer(module, mask, TWINS[type(module)])
        else:
            mask_parameter(module, attribute, mask)
    for name, mask in chosen.values():
        if name in holders:
            holders[name].mask = mask
    keep_masks_out_of_ddp(model)
    return model


def share_masks(model: Model) -> Model:
    """Give every shared parameter one mask in all of its modules: a weight survives where all masks on it keep it.

    A mask that was put on a single layer (``prune.l1_unstructured(decoder, "weight", 0.2)``) cannot know who else holds
    the layer's weight; the model can.
    """
    users = plain_users(model)
    holders = masked_parameters(model)
    weights = {name: holder.weight for name, holder in holders.items()}  # kept, so that an id means one of them
    sharing: dict[int, list[str]] = {}
    for name, weight in weights.items():
        sharing.setdefault(id(weight), []).append(name)
    partly: dict[str, Tensor] = {}
    narrower: dict[str, Tensor] = {}
    for key, names in sharing.items():
        if key in users or len(names) > 1:
            found = [holders[name].mask for name in names]
            mask = functools.reduce(torch.logical_and, found)
            partly |= {names[0]: mask} if key in users else {}
            narrower |= {name: mask for name, old in zip(names, found, strict=True) if not torch.equal(mask, old)}
    set_masks(model, partly)
    for name, mask in narrower.items():
        holders[name].mask = mask
    return model


def plain_users(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules and attributes that hold a parameter without a mask of ours, by the parameter's ``id``."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        masked = isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], MaskedParameter)
        for attribute, parameter in module._parameters.items():
            own = isinstance(module, MaskedLayer) and attribute == "weight"
            if parameter is not None and not masked and not own:
                users.setdefault(id(parameter), []).append((module, attribute))
    return users


def _refuse_computed(modules: Mapping[str, nn.Module], name: str, holders: Container[str]) -> None:
    layer, _, attribute = name.rpartition(".")
    module = modules.get(layer)
    if module is not None and name not in holders and parametrize.is_parametrized(module, attribute):
        kinds = ", ".join(type(entry).__name__ for entry in module.parametrizations[attribute])  # type: ignore[index]
        raise TypeError(f"masks[{name!r}]: expected a parameter, got a tensor that {kinds} computes")


def _refuse_shared_memory(parameters: Mapping[str, Tensor], chosen: Mapping[int, tuple[str, Tensor]]) -> None:
    """Raise ValueError where a parameter to be masked shares places in memory.

    With another one that is a view of it, which would write around the mask; or among its own numbers (expanded).
    """
    for name, parameter in parameters.items():
        if id(parameter) in chosen and any(
            size > 1 and step == 0 for size, step in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            raise ValueError(
                f"masks: expected parameters with a place for every number, got {name!r} expanded; clone it"
            )
    with_memory = [
        (*_span(parameter), id(parameter), name)
        for name, parameter in parameters.items()
        # Some have no memory yet, or keep it elsewhere.
        if not (is_lazy(parameter) or parameter.is_meta) and parameter.numel() and parameter.data_ptr()
    ]
    furthest = furthest_chosen = (0, 0, "")  # of those before: where one ends, its id and its name
    for first, end, one, name in sorted(with_memory):
        behind, other, other_name = furthest if one in chosen else furthest_chosen
        if first < behind and one != other:
            raise ValueError(
                "masks: expected parameters with memory of their own, or one Parameter that modules share, got "
                f"{other_name!r} and {name!r} as views of one memory"
            )
        furthest = max(furthest, (end, one, name))
        if one in chosen:
            furthest_chosen = max(furthest_chosen, (end, one, name))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of ``tensor`` and of the one behind its last."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


_EXPECTED_NO_SPARSE_LAYER = (
    "expected a layer that can take a mask, got a sparse one, whose mask is part of its Parameter; "
    "lth_fast.nn.convert(model, masks) makes it anew"
)


def check_user(module: nn.Module, attribute: str, mask: str) -> None:
    """Raise TypeError where ``module`` cannot have the mask called ``mask`` on ``attribute`` or reads around it."""
    if isinstance(module, SparseLayer) and attribute == "values":
        raise TypeError(f"{mask}: {_EXPECTED_NO_SPARSE_LAYER}")
    if isinstance(module, nn.RNNBase):
        raise TypeError(f"{mask}: a {type(module).__name__} reads its parameters around any mask; use its cell")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        kind = type(module).__name__
        raise TypeError(f"{mask}: expected an {kind} with sparse=False, the gradients of a masked weight are dense")
    if isinstance(module, parametrize.ParametrizationList):
        kinds = ", ".join(type(entry).__name__ for entry in module)
        raise TypeError(f"{mask}: expected a parameter that no parametrization computes with, got one under {kinds}")


def _becomes_a_twin(module: nn.Module, attribute: str) -> bool:
    kind = type(module)
    if attribute != "weight" or kind not in TWINS:
        return False
    # Or a buffer that a user has called mask would be taken for ours.
    return attributes_of(module).isdisjoint(_NAMES_OF_FORMS[kind])


def restore(model: Model) -> Model:
    """Make every masked or sparse layer and parameter of ``model`` plain again in place, zeros where masks pruned.

    Returns:
        ``model``. Its parameters are the same objects as before, but for those of sparse layers: ``weight`` again
        instead of ``values``.

    Raises:
        TypeError: A parametrization computes the weight of a masked layer; nothing has changed then.
    """
    for name, layer in masked_layers(model).items():
        if layer.masked_parameter is None:
            raise TypeError(
                f"model: expected weights that are parameters, got {name!r} computed from others, where the mask's "
                "zeros cannot stay; remove its parametrization first"
            )
    make_masked(model)
    for name, holder in masked_parameters(model).items():
        if isinstance(holder, MaskedParameter):
            unmask_parameter(*_owner(model, name))
    for layer in list(masked_layers(model).values()):
        unmask_layer(layer)
    forget_choices(model)
    keep_masks_out_of_ddp(model)
    return model


CHOICES = "_lth_fast_choices"
"""Where a model keeps what :func:`lth_fast.nn.convert` decided for it, by a name that no user gives an attribute."""


def forget_choices(model: nn.Module) -> None:
    """Forget what was decided for ``model`` and, by itself, for any part of it."""
    for part in model.modules():
        part.__dict__.pop(CHOICES, None)


def unmask(model: nn.Module, name: str) -> None:
    """Take the mask off the parameter ``name``; its pruned values stay as zeros."""
    module, attribute = _owner(model, name)
    if mask_on(module, attribute) is not None:
        unmask_parameter(module, attribute)
    else:
        assert isinstance(module, MaskedLayer)
        unmask_layer(module)


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """The names of every parameter, by its ``id``: one for each module that holds it, as in the plain model."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                plain = _PARAMETRIZED.sub(r"\1", join(name, attribute))
                names.setdefault(id(parameter), []).append(plain)
    return names


def keep_masks_out_of_ddp(model: nn.Module) -> None:
    """Tell ``DistributedDataParallel``, if it should wrap ``model``, not to broadcast masks and patterns every step."""
    ours = (MaskedLayer, MaskedParameter, SparseLayer)
    names = {
        join(name, buffer)
        for name, module in model.named_modules()
        if isinstance(module, ours)
        for buffer in module._non_persistent_buffers_set
    }
    users = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ())) - getattr(model, "_ddp_masks", set())
    model._ddp_masks = names  # type: ignore[assignment]
    model._ddp_params_and_buffers_to_ignore = sorted(users | names)  # type: ignore[assignment]
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):  # which has read that list when it was made
            prefix = join(name, "module.")
            module.parameters_to_ignore |= {each.removeprefix(prefix) for each in names if each.startswith(prefix)}


def make_sparse(layer: MaskedLayer) -> None:
    """Turn a masked layer into its sparse form in place. The weight's gradient goes along."""
    sparse = SPARSE[layer.plain_class].from_dense(layer)
    if layer.weight.grad is not None:
        with torch.inference_mode(False):  # what is made in it no later backward can add to
            sparse.values.grad = sparse.collect(layer.weight.grad)
    mask_changes.forget(layer)
    mask_changes.note_replaced(layer.weight)
    _become(layer, sparse)


def make_masked(model: nn.Module) -> None:
    """Turn every sparse layer of ``model`` into its masked form in place. The gradient goes along.

    Raises:
        TypeError: Values or bias of a sparse layer are computed, not by a mask of ours, instead of being a parameter;
            nothing has changed then.
    """
    layers = sparse_layers(model)
    for name, layer in layers.items():
        for attribute in ("values", "bias"):
            under_our_mask = attribute == "bias" and mask_on(layer, attribute) is not None
            if attribute not in layer._parameters and not under_our_mask:
                computed = f"{name.removesuffix('weight')}{attribute}"
                raise TypeError(
                    f"model: expected sparse layers whose values and biases are parameters, got {computed!r} computed "
                    "by a parametrization or by torch.nn.utils.prune; remove it first"
                )
    for layer in layers.values():
        mask, gradient = layer.mask, layer.values.grad
        on_bias = mask_on(layer, "bias")
        if on_bias is not None:
            unmask_parameter(layer, "bias")
        plain = layer.to_dense()
        if gradient is not None:
            with torch.inference_mode(False):
                plain.weight.grad = layer.spread(gradient)
        mask_changes.note_replaced(layer.values)
        _become(layer, plain)
        mask_layer(layer, mask, TWINS[type(plain)])
        if on_bias is not None:
            mask_parameter(layer, "bias", on_bias.mask)


@contextmanager
def masked_for_a_while(model: nn.Module) -> Iterator[None]:
    """Masked forms instead of sparse ones, as :func:`make_masked` makes them, which stay unless the body raises.

    Then the sparse layers are back, with the Parameters that an optimizer may hold.
    """
    sparse = [
        (layer, type(layer), dict(layer._parameters), dict(layer._buffers), set(layer._non_persistent_buffers_set))
        for layer in sparse_layers(model).values()
    ]
    make_masked(model)
    try:
        yield
    except BaseException:
        for layer, kind, parameters, buffers, transient in sparse:
            mask_changes.forget(layer)  # type: ignore[arg-type]
            forget_state(layer)
            layer.__class__ = kind
            layer._parameters, layer._buffers, layer._non_persistent_buffers_set = parameters, buffers, transient
            mask_changes.note_put_back(layer.values)
        keep_masks_out_of_ddp(model)
        raise


def _become(layer: nn.Module, other: nn.Module) -> None:
    """Give ``layer`` class, parameters and buffers of ``other``; hooks and whatever a user has put on it stay.

    The parameters keep their order, by which the state of an optimizer goes.
    """
    own = {"mask_bits", *getattr(layer, "pattern_fields", ())}
    users = {name: buffer for name, buffer in layer._buffers.items() if name not in own}
    transient = layer._non_persistent_buffers_set - own
    names = dict.fromkeys(("weight", "values"), "values" if "values" in other._parameters else "weight")
    held = {**layer._parameters, **other._parameters}
    forget_state(layer)
    layer.__class__ = other.__class__
    layer._parameters = {names.get(name, name): held[names.get(name, name)] for name in layer._parameters}
    layer._buffers = {**users, **other._buffers}
    layer._non_persistent_buffers_set = transient | other._non_persistent_buffers_set


def _owner(model: nn.Module, parameter_name: str) -> tuple[nn.Module, str]:
    layer_name, _, attribute = parameter_name.rpartition(".")
    return model.get_submodule(layer_name), attribute


def join(layer_name: str, parameter: str) -> str:
    """The name in the whole model of a parameter of the layer ``layer_name``, which is empty for the model itself."""
    return f"{layer_name}.{parameter}" if layer_name else parameter
