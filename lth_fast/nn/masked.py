"""What every masked layer shares: the mask beside the weight, and the promise that pruned weights are zero."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lth_fast.nn import shared_mask
from lth_fast.nn.attributes import becomes_a_graph, parameter, transformed
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.tracing import refuse_scripting
from lth_fast.ops import masked_apply, pack_mask, unpack_mask

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's in Python 3.11

MASKABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class MaskedLayer(nn.Module):
    """Base of ``MaskedLinear``, ``MaskedConv2d``, ``MaskedEmbedding``: a plain layer whose ``weight`` carries a mask.

    The mask is a bool tensor of the weight's shape outside (``True`` = survivor) and one bit per weight inside. It is
    not part of ``state_dict``, whose keys are the plain layer's; it moves with ``.to()``, deepcopy and pickle. Masked
    layers that share a weight share its mask: set on one of them, it is set on all.

    Pruned weights are zero. ``load_state_dict`` masks what it writes, and so does every step of a torch optimizer. The
    layer knows when the weight was last seen masked and re-applies the mask in the forward if anything else wrote to it
    since, an initialiser for instance. Call :meth:`apply_mask` after writes through ``weight.data``, which leave no
    trace in torch's version counter, and where something reads what was written before a forward has masked it:
    ``F.linear(x, layer.weight)``, ``state_dict()``, a ``TransformerEncoderLayer`` in evaluation. An average of models
    (``AveragedModel``) takes over the mask, unless ``use_buffers=True`` has it average the mask's bits as numbers.
    """

    plain_class: ClassVar[type[nn.Module]]
    masks_gradient: bool = True
    """Whether the backward zeroes the gradient of pruned weights, or leaves it to ``lth_fast.optim``."""
    weight: Tensor
    mask_bits: Tensor
    read_directly = False
    """Whether code outside of the forward computes with ``weight``, whose gradients from there bear no mask: optimizers
    then mask the gradient before every step. :func:`~lth_fast.nn.convert` finds out with an example input."""

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the weight's shape, ``True`` where the weight survives. A copy: assign to change it."""
        return unpack_mask(self.mask_bits, self.weight.shape)

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        weight = self.weight
        survivors: int | None = None  # counted when asked for
        if mask is None:
            _check_dtype(weight, "mask")
            mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
            survivors = weight.numel()
        else:
            check_mask(mask, weight, "mask")
        # Made in inference mode, the bits could not be saved for the backward of a later training step.
        with torch.inference_mode(False):
            bits = pack_mask(mask.detach().to(weight.device))
        shared_mask.take_mask(self, bits)
        if survivors is not None:
            self._counted = (bits, _writes(bits), survivors)

    def hold_mask(self, bits: Tensor) -> None:
        """Keep the packed mask ``bits`` without applying it."""
        if "mask_bits" in self._buffers:
            self.mask_bits = bits
        else:
            self.register_buffer("mask_bits", bits, persistent=False)

    def apply_mask(self) -> None:
        """Zero the pruned weights now."""
        shared_mask.apply_mask(self)

    def mask_what_was_written(self) -> None:
        """Zero the pruned weights, unless it is known that nothing wrote to them since."""
        weight = self.masked_parameter
        if weight is not None and not as_it_was(weight, self._seen_masked):
            self.apply_mask()

    def trust_weight(self) -> None:
        """Note that the pruned weights are zero as they stand.

        For whoever just wrote the weight and knows it, a training loop whose optimizer maps zero gradients and zero
        moments to zero, for instance: the next forward then skips re-applying the mask.
        """
        # Past what a module does on every assignment: this runs for every layer at every optimizer step.
        self.__dict__["_seen_masked"] = as_written(parameter(self, "weight"))

    @property
    def masked_parameter(self) -> Tensor | None:
        """The weight, or ``None`` where it is computed instead of being a parameter."""
        return self._parameters.get("weight")

    def masked_weight(self) -> Tensor:
        """The weight, after re-applying the mask if anything wrote to it since it was last known to be masked."""
        weight: Tensor = parameter(self, "weight")
        if transformed():
            return torch.where(self.mask, weight, 0)
        if becomes_a_graph():
            return masked_apply(weight, self.mask_bits)
        if not is_own(weight, self._seen_masked):
            return masked_apply(weight, self.mask_bits)
        if not as_it_was(weight, self._seen_masked):
            if detect_fake_mode() is not None:  # only shapes are wanted: nothing would be written
                return masked_apply(weight, self.mask_bits)
            self.apply_mask()
        return weight

    @property
    def survivors(self) -> int:
        """Number of weights the mask keeps."""
        bits = self.__dict__.get(shared_mask.ASIDE, self.mask_bits)
        if bits.is_meta:
            return self.weight.numel()
        counted = self.__dict__.get("_counted")
        # An average of models writes the mask of another one into the bits.
        if counted is None or counted[0] is not bits or counted[1] != _writes(bits):
            counted = self._counted = (bits, _writes(bits), int(unpack_mask(bits, self.weight.shape).sum()))
        return counted[2]

    @property
    def density(self) -> float:
        """Share of the weights the mask keeps, 0 to 1 (1 for an empty weight)."""
        return self.survivors / self.weight.numel() if self.weight.numel() else 1.0

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Tensor | None = None) -> Self:
        """Make a masked layer that shares the parameters of ``layer``.

        Args:
            layer: The plain layer; it is left as it is, but its weight is zeroed where ``mask`` prunes.
            mask: Bool tensor of the weight's shape; ``None`` keeps the mask of a masked layer and every weight of a
                plain one.

        Raises:
            TypeError: ``layer`` is of another class, or its weight is computed (by ``torch.nn.utils.prune`` or a
                parametrization) instead of being a parameter; or ``mask`` is not bool.
            ValueError: ``mask`` has another shape than the weight, or a user has given ``layer`` an attribute by a name
                that the masked one has (a buffer ``mask`` for instance).
        """
        if not (type(layer) is cls.plain_class or isinstance(layer, cls)) or "weight" not in layer._parameters:
            raise TypeError(
                f"layer must be an nn.{cls.plain_class.__name__} (no subclass) whose weight is a parameter, "
                f"got {type(layer).__name__} with parameters {list(layer._parameters)}"
            )
        _refuse_computed(layer)
        if isinstance(layer, MaskedLayer):
            mask = layer.mask if mask is None else mask
        elif taken := attributes_of(layer) & names_beside(cls.plain_class, cls):
            raise ValueError(
                f"layer: expected an nn.{cls.plain_class.__name__} without attributes that a {cls.__name__} has by the "
                f"same name, got {', '.join(sorted(taken))}; lth_fast.nn.set_masks masks it as it is"
            )
        twin = _copy_as(cls, layer)
        twin.mask = mask
        return twin

    def to_dense(self) -> nn.Module:
        """The plain layer with the same parameters (shared), zeros where the mask prunes.

        Raises:
            TypeError: A parameter is computed, by a parametrization or the mask of a bias.
        """
        _refuse_computed(self)
        self.apply_mask()
        plain = _copy_as(self.plain_class, self)
        _forget_mask(plain)
        return plain

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, density={self.density:.4g}"

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_scripting(self)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        weight = self.masked_parameter
        if weight is not None and not weight.is_meta:
            shared_mask.move_mask(self, self.mask_bits, weight.device)  # to the weight that was assigned
            self.apply_mask()  # now, for whoever reads the weight before the next forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # As without it; but a masked bias makes parametrize give the class its own, which leaves __setstate__ out.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        state = {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}
        twin.__setstate__(deepcopy(state, memo))
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The copy's version counter starts anew, so what was noted about the original says nothing about it; and an
        # optimizer may have been copied along.
        self._seen_masked = not_yet_seen(self.masked_parameter)
        self.__dict__.pop("_counted", None)
        self.masks_gradient = True  # the copy's loop is another one
        mask_changes.note(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        bits, weight = self.mask_bits, self.masked_parameter
        super()._apply(fn, recurse)
        # fn may convert (type()) or hand out uninitialised memory (to_empty); the mask only moves.
        shared_mask.move_mask(self, bits, self.weight.device)
        if self.masked_parameter is not weight:
            self._seen_masked = not_yet_seen(self.masked_parameter)
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of every module; ``layer.weight = nn.Parameter(...)`` comes here, too, and is the layer's own then."""
        super().register_parameter(name, param)
        if name == "weight" and "mask_bits" in self._buffers:
            self.__dict__["_seen_masked"] = not_yet_seen(param)


def check_mask(mask: Any, weight: Tensor, name: str) -> None:
    """Raise TypeError or ValueError, calling the mask ``name``, unless ``mask`` can be a mask of ``weight``."""
    if is_lazy(weight):
        raise ValueError(f"{name}: expected a weight with a shape, got a lazy one; run the model on an input first")
    shape = list(weight.shape)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor of shape {shape}, got {given}")
    if list(mask.shape) != shape:
        raise ValueError(f"{name} must have the weight's shape {shape}, got {list(mask.shape)}")
    if mask.is_meta:
        raise ValueError(f"{name} must have values, got a mask on the meta device")
    _check_dtype(weight, name)
    if weight.is_meta:
        raise ValueError(f"{name}: expected a weight with values, got one on the meta device; move it with to_empty()")


def _check_dtype(weight: Tensor, name: str) -> None:
    if weight.dtype not in MASKABLE:
        expected = ", ".join(map(str, MASKABLE))
        raise TypeError(f"{name}: expected a weight of one of {expected}, got {weight.dtype}")


def names_beside(plain: type[nn.Module], form: type[nn.Module]) -> set[str]:
    """What a layer has in the masked or sparse ``form`` by names that the ``plain`` one has not."""
    names = {"mask_bits", *dir(form)} - {"weight", *dir(plain)}
    return {name for name in names if not name.startswith("_")}  # our own state, some stays on a layer plain again


def attributes_of(module: nn.Module) -> set[str]:
    """The names of all that ``module`` itself holds."""
    return {*vars(module), *module._buffers, *module._parameters, *module._modules}


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # an inference tensor counts none


def as_written(weight: Tensor) -> tuple[Tensor, int, int] | None:
    """What tells :func:`as_it_was` later whether ``weight`` was written to or replaced."""
    if type(weight) is not nn.Parameter or weight.is_inference():  # which counts no writes
        return None
    # The weight itself, not its identity: another one may get that, with the memory and as many writes.
    return (weight, 0 if weight.is_meta else weight.data_ptr(), weight._version)


def not_yet_seen(weight: Tensor | None) -> tuple[Tensor, int, int] | None:
    """What tells :func:`is_own` later that ``weight`` is the layer's, and :func:`as_it_was` that it was written to."""
    seen = None if weight is None else as_written(weight)
    return None if seen is None else (*seen[:2], -1)  # as many writes as no tensor has


def is_own(weight: Tensor, seen: tuple[Tensor, int, int] | None) -> bool:
    """Whether ``weight`` is the layer's to write to, not computed nor lent by a caller (``functional_call``)."""
    return type(weight) is nn.Parameter and (seen is None or seen[0] is weight)


def as_it_was(weight: Tensor, seen: tuple[Tensor, int, int] | None) -> bool:
    """Whether nothing was written to ``weight`` since :func:`as_written` told ``seen``, as far as torch counts."""
    if seen is None or seen[0] is not weight:
        return False
    return seen[2] == weight._version and seen[1] == (0 if weight.is_meta else weight.data_ptr())


def _refuse_computed(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
        raise TypeError(
            f"layer: expected parameters, got {names} computed by a parametrization or under a mask; remove it first"
        )


def _copy_as(cls: type[nn.Module], layer: nn.Module) -> Any:
    """A ``cls`` with the parameters, buffers and hooks of ``layer``; the tables that hold them are its own."""
    copy = cls.__new__(cls)
    for key, value in layer.__dict__.items():
        if key == "_compiled_call_impl":  # by layer.compile(): it calls that very layer
            continue
        copy.__dict__[key] = value.copy() if key.startswith("_") and isinstance(value, (dict, set)) else value
    return copy


def mask_layer(layer: nn.Module, mask: Tensor, cls: type[MaskedLayer]) -> None:
    """Turn a plain ``layer`` into its masked twin in place, so that whoever holds the layer sees the mask.

    The mask has been checked: nothing puts the class back if it cannot be set.
    """
    layer.__class__ = cls
    layer.mask = mask


def unmask_layer(layer: MaskedLayer) -> None:
    """Turn a masked layer back into its plain class in place; pruned weights stay as zeros.

    Its weight is a parameter: the zeros could not stay in one that is computed.
    """
    layer.apply_mask()
    if parametrize.is_parametrized(layer):  # a masked bias, whose class parametrize has made
        made = type(layer)
        bases = tuple(layer.plain_class if issubclass(base, MaskedLayer) else base for base in made.__bases__)
        # The class that parametrize makes of a plain one can be copied, too.
        layer.__class__ = type(made.__name__, bases, {**vars(made), "__deepcopy__": MaskedLayer.__deepcopy__})
    else:
        layer.__class__ = layer.plain_class  # type: ignore[assignment]
    _forget_mask(layer)


def _forget_mask(layer: Any) -> None:
    mask_changes.forget(layer)
    layer._buffers.pop("mask_bits", None)
    layer._non_persistent_buffers_set.discard("mask_bits")
    forget_state(layer)


def forget_state(layer: nn.Module) -> None:
    """Drop what a masked layer knows besides its tensors."""
    for name in ("_seen_masked", "_counted", "masks_gradient", "read_directly", shared_mask.ASIDE):
        layer.__dict__.pop(name, None)
