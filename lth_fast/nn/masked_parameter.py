"""A mask on any parameter, for what is not the weight of a plain Linear or Conv2d: biases, subclasses' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn.utils import parametrize

from lth_fast.nn import shared_mask
from lth_fast.nn.attributes import becomes_a_graph, transformed
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.masked import as_it_was, as_written, check_mask, is_own
from lth_fast.ops import masked_apply, pack_mask, unpack_mask

# Where a module keeps the names of its parameters in the order they had before the first mask.
_ORDER = "_order_of_parameters"


class MaskedParameter(nn.Module):
    """A parametrization that computes a parameter as its values under a mask.

    The price of ``torch.nn.utils.parametrize``: the parameter's key in ``state_dict`` becomes
    ``parametrizations.<name>.original`` (:func:`~lth_fast.nn.dense_state` gives the plain keys).
    """

    mask_bits: Tensor
    masks_gradient = True
    read_directly = False
    """Both as in :class:`~lth_fast.nn.MaskedLayer`."""
    _seen_masked: tuple[Tensor, int, int] | None = None

    def __init__(self, parameter: nn.Parameter, mask: Tensor) -> None:
        super().__init__()
        # In a tuple, so that it is not registered here a second time; copies keep the two the same object.
        self._held: tuple[nn.Parameter | parametrize.ParametrizationList] = (parameter,)
        self.register_buffer("mask_bits", None, persistent=False)
        self.mask = mask

    def take_place(self, among: parametrize.ParametrizationList) -> None:
        """Read the parameter from now on where ``among`` holds it, for it may be replaced there."""
        self._held = (among,)

    @property
    def weight(self) -> Tensor:
        """The parameter under the mask, zero where it is pruned."""
        (held,) = self._held
        return held.original if isinstance(held, parametrize.ParametrizationList) else held

    @property
    def masked_parameter(self) -> Tensor | None:
        """The parameter, as ``weight``."""
        return self.weight

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the parameter's shape, ``True`` where it survives. A copy: assign to change it."""
        return unpack_mask(self.mask_bits, self.weight.shape)

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        check_mask(mask, self.weight, "mask")
        with torch.inference_mode(False):  # or the bits could not be saved for the backward of a later training step
            bits = pack_mask(mask.detach().to(self.weight.device))
        shared_mask.take_mask(self, bits)

    @property
    def density(self) -> float:
        """Share of the parameter that the mask keeps, 0 to 1 (1 for an empty parameter)."""
        bits, count = vars(self).get(shared_mask.ASIDE, self.mask_bits), self.weight.numel()
        if bits.is_meta or count == 0:
            return 1.0
        return int(unpack_mask(bits, self.weight.shape).sum()) / count

    def hold_mask(self, bits: Tensor) -> None:
        """Keep the packed mask ``bits`` without applying it."""
        self.mask_bits = bits

    def apply_mask(self) -> None:
        """Zero the pruned values now."""
        shared_mask.apply_mask(self)

    def mask_what_was_written(self) -> None:
        """Zero the pruned values, unless it is known that nothing wrote to them since."""
        if not as_it_was(self.weight, self._seen_masked):
            self.apply_mask()

    def trust_weight(self) -> None:
        """Note that the pruned values are zero as they stand."""
        self.__dict__["_seen_masked"] = as_written(self.weight)

    def forward(self, original: Tensor) -> Tensor:
        if transformed():
            return torch.where(self.mask, original, 0)
        if (
            is_own(original, self._seen_masked)
            and original is self.weight
            and not becomes_a_graph()
            and detect_fake_mode() is None
        ):
            self.mask_what_was_written()  # in the parameter itself, which weight decay reads
        return masked_apply(original, self.mask_bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        bits, self._seen_masked = self.mask_bits, None  # of a weight that may be another one then
        super()._apply(fn, recurse)
        # fn may convert (type()) or hand out uninitialised memory (to_empty); the mask only moves.
        shared_mask.move_mask(self, bits, self.mask_bits.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.weight.is_meta:  # what holds it has loaded it before
            shared_mask.move_mask(self, self.mask_bits, self.weight.device)
            self.apply_mask()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seen_masked = None
        mask_changes.note(self)


def mask_on(module: nn.Module, name: str) -> MaskedParameter | None:
    """The mask parametrization of ``module``'s parameter ``name``, if it has one."""
    if not parametrize.is_parametrized(module, name):
        return None
    found = [entry for entry in module.parametrizations[name] if isinstance(entry, MaskedParameter)]  # type: ignore[index]
    return found[0] if found else None


def mask_parameter(module: nn.Module, name: str, mask: Tensor) -> None:
    """Put ``mask`` on the plain parameter ``name`` of ``module``, which has been checked."""
    module.__dict__.setdefault(_ORDER, tuple(module._parameters))
    if parametrize.is_parametrized(module):
        _give_own_class(module)
    entry = MaskedParameter(module.get_parameter(name), mask)
    parametrize.register_parametrization(module, name, entry)
    entry.take_place(module.parametrizations[name])  # type: ignore[index, arg-type]


def unmask_parameter(module: nn.Module, name: str) -> None:
    """Make the parameter plain again, zeros where it was pruned, in the place it had among the module's parameters."""
    entry = mask_on(module, name)
    assert entry is not None
    mask_changes.forget(entry)
    _give_own_class(module)
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    # The state of an optimizer goes by the order of the parameters.
    order = module.__dict__.get(_ORDER, ())
    places = {parameter: place for place, parameter in enumerate(order)}
    held = sorted(module._parameters.items(), key=lambda item: places.get(item[0], len(order)))
    module._parameters.clear()
    module._parameters.update(held)
    if not parametrize.is_parametrized(module):
        module.__dict__.pop(_ORDER, None)


def _give_own_class(module: nn.Module) -> None:
    """Part a parametrized ``module`` from its deep copies, which have the class that parametrize made for the first.

    Parametrize puts properties into that class and takes them out again.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
