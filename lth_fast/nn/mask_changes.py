"""When masks were set: how an optimizer learns that weights it remembers have been pruned."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from lth_fast.nn.masked import MaskedLayer
    from lth_fast.nn.masked_parameter import MaskedParameter

Holder: TypeAlias = "MaskedLayer | MaskedParameter"


class MaskChanges:
    """Every live masked layer or parameter, with a running number of when its mask was last set.

    Attributes:
        newest: The running number of the latest change, 0 before the first.
    """

    def __init__(self) -> None:
        self.newest = 0
        self._last_change: weakref.WeakKeyDictionary[Holder, int] = weakref.WeakKeyDictionary()

    def note(self, layer: Holder) -> None:
        """The mask of ``layer`` was set."""
        self.newest += 1
        self._last_change[layer] = self.newest

    def forget(self, layer: Holder) -> None:
        """``layer`` has no mask any more."""
        self._last_change.pop(layer, None)

    def since(self, number: int) -> list[Holder]:
        """The layers whose masks were set after change ``number``; 0: every masked layer."""
        return [layer for layer, change in self._last_change.items() if change > number]


mask_changes = MaskChanges()
