"""When masks were set and on what: how an optimizer learns that weights it remembers have been pruned."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import Protocol

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


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
        """What is under the mask."""

    @property
    def masked_parameter(self) -> Tensor | None:
        """``weight``, where it is a parameter: nothing can be written to one that is computed."""

    def hold_mask(self, bits: Tensor) -> None:
        """Keep the packed mask ``bits`` without applying it."""

    def apply_mask(self) -> None:
        """Zero the pruned weights now."""

    def mask_what_was_written(self) -> None:
        """Zero the pruned weights, unless it is known that nothing wrote to them since."""

    def trust_weight(self) -> None:
        """Note that the pruned weights are zero as they stand."""


class MaskChanges:
    """Everything alive that holds a mask, with a running number of when its mask was last set.

    Attributes:
        newest: The running number of the latest change, 0 before the first; losing a mask counts as one, too.
        read_directly: The layers whose weight something reads around them, so that its gradient is not all masked.

    Threads may ask and note at any time.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.read_directly: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._last_change: weakref.WeakKeyDictionary[Holder, int] = weakref.WeakKeyDictionary()
        # As of a change, whose number comes first: by the identity of the weight.
        self._found: tuple[int, dict[int, list[weakref.ref[Holder]]]] = (0, {})
        self._replaced = WeakIdKeyDictionary()
        self._lock = threading.RLock()

    def note(self, layer: Holder) -> None:
        """The mask of ``layer`` was set."""
        with self._lock:
            self.newest += 1
            self._last_change[layer] = self.newest
            (self.read_directly.add if layer.read_directly else self.read_directly.discard)(layer)

    def forget(self, layer: Holder) -> None:
        """``layer`` has no mask any more."""
        with self._lock:
            self.read_directly.discard(layer)
            if self._last_change.pop(layer, None) is not None:
                self.newest += 1

    def note_replaced(self, parameter: Tensor) -> None:
        """Another Parameter has taken the place of ``parameter`` in its layer, which has changed its form."""
        with self._lock:
            self.newest += 1
            self._replaced[parameter] = True

    def note_put_back(self, parameter: Tensor) -> None:
        """``parameter`` is in its layer again."""
        with self._lock:
            self._replaced.pop(parameter, None)

    def was_replaced(self, parameter: Tensor) -> bool:
        """Whether a layer that changed its form has left ``parameter`` behind."""
        return parameter in self._replaced

    def since(self, number: int) -> list[Holder]:
        """Those whose masks were set after change ``number``; 0: all."""
        with self._lock:
            return [layer for layer, change in self._last_change.items() if change > number]

    def held_directly(self) -> list[Holder]:
        """Those in ``read_directly``."""
        with self._lock:
            return list(self.read_directly)

    def holders_of(self, parameter: Tensor, anew: bool = False) -> list[Holder]:
        """Those whose weight ``parameter`` is: none or one, more where layers share it.

        Looked up only after a change, or where ``anew`` says so, for layers may have come to share a weight since. So
        an optimizer may ask at every step.
        """
        if anew:
            with self._lock:
                self._found = (-1, {})  # whoever asks next has to look, too
                return [layer for layer in self._last_change if layer.masked_parameter is parameter]
        found = self.by_identity().get(id(parameter))
        if found is None:
            return []
        layers = (layer() for layer in found)
        # The weight may have been replaced since, or another tensor have got its identity.
        return [layer for layer in layers if layer is not None and layer.masked_parameter is parameter]

    def by_identity(self) -> dict[int, list[weakref.ref[Holder]]]:
        """By the ``id`` of a weight who may hold it, as :meth:`holders_of` tells; a weight not in here has no mask."""
        change, found = self._found
        return found if change == self.newest else self._find()

    def _find(self) -> dict[int, list[weakref.ref[Holder]]]:
        with self._lock:
            by_identity: dict[int, list[weakref.ref[Holder]]] = {}
            for layer in self._last_change:
                by_identity.setdefault(id(layer.masked_parameter), []).append(weakref.ref(layer))
            self._found = (self.newest, by_identity)
            return by_identity


mask_changes = MaskChanges()
