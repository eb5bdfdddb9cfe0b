from __future__ import annotations

import gc

from lth_fast.nn import MaskedLinear
from lth_fast.nn.mask_changes import MaskChanges


def test_changes_are_told_from_any_point_on_each_layer_once() -> None:
    changes, first, second = MaskChanges(), MaskedLinear(2, 2), MaskedLinear(2, 2)
    assert changes.since(changes.newest) == []
    changes.note(first)
    changes.note(second)
    before = changes.newest
    assert set(changes.since(0)) == {first, second}
    changes.note(first)
    assert changes.since(before) == [first]
    assert changes.since(changes.newest) == []
    assert set(changes.since(0)) == {first, second}


def test_a_layer_without_a_mask_is_forgotten() -> None:
    changes, layer = MaskChanges(), MaskedLinear(2, 2)
    changes.note(layer)
    changes.forget(layer)
    changes.forget(layer)
    assert changes.since(0) == []


def test_layers_are_not_kept_alive() -> None:
    changes, layer = MaskChanges(), MaskedLinear(2, 2)
    changes.note(layer)
    del layer
    gc.collect()
    assert changes.since(0) == []
