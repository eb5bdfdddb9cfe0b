"""When masks were set and on what: how an optimizer learns that weights it remembers have been pruned."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Protocol

from torch import Tensor


class Holder(Hashable, Protocol):
    """What has a mask: a masked layer, a masked parameter, or several layers stacked.

    Attributes:
        mask_bits: The packed mask.
        masks_gradient: Whether the backward zeroes the gradient where ``weight`` is pruned.
        read_directly: Whether something besides the layer computes with ``weight``, whose gradient then bears no mask.
    """

    mask_bits: Tensor
    masks_gradient: bool
    read_directly: bool

    @property
    def weight(self) -> Tensor:
        """The parameter under the mask."""

    def hold_mask(self, bits: Tensor) -> None:
        """Keep the packed mask ``bits`` without applying it."""

    def apply_mask(self) -> None:
        """Zero the pruned weights now."""

    def trust_weight(self) -> None:
        """Note that the pruned weights are zero as they stand."""


class MaskChanges:
    """Everything alive that holds a mask, with a running number of when its mask was last set.

    Attributes:
        newest: The running number of the latest change, 0 before the first; losing a mask counts as one, too.
        read_directly: The layers whose weight something reads around them, so that its gradient is not all masked.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.read_directly: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._last_change: weakref.WeakKeyDictionary[Holder, int] = weakref.WeakKeyDictionary()
        # Of the state that is the change `_found_at`, by the identity of the weight.
        self._found: dict[int, list[weakref.ref[Holder]]] = {}
        self._found_at = 0

    def note(self, layer: Holder) -> None:
        """The mask of ``layer`` was set."""
        self.newest += 1
        self._last_change[layer] = self.newest
        (self.read_directly.add if layer.read_directly else self.read_directly.discard)(layer)

    def forget(self, layer: Holder) -> None:
        """``layer`` has no mask any more."""
        self.read_directly.discard(layer)
        if self._last_change.pop(layer, None) is not None:
            self.newest += 1

    def since(self, number: int) -> list[Holder]:
        """Those whose masks were set after change ``number``; 0: all."""
        return [layer for layer, change in self._last_change.items() if change > number]

    def holders_of(self, parameter: Tensor) -> list[Holder]:
        """Those whose weight ``parameter`` is: none or one, more where layers share it.

        Looked up anew only after a change, so an optimizer may ask at every step.
        """
        if self._found_at != self.newest:
            self._found = {}
            for layer in self._last_change:
                self._found.setdefault(id(layer.weight), []).append(weakref.ref(layer))
            self._found_at = self.newest
        found = self._found.get(id(parameter))
        if found is None:
            return []
        layers = (layer() for layer in found)
        # The weight may have been replaced since, or another tensor have got its identity.
        return [layer for layer in layers if layer is not None and layer.weight is parameter]


mask_changes = MaskChanges()
