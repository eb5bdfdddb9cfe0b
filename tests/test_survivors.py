"""Counting what masks keep."""

from __future__ import annotations

import pytest
import torch

from lth_fast._survivors import count_kept, keeps_everything


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (3, 0, 2), (4, 3, 5, 5)], ids=str)
def test_of_any_shape_and_memory_order(shape, density, device):
    mask = torch.rand(shape, device=device) < density
    for seen in (mask, mask.transpose(0, -1) if mask.dim() else mask, mask.flip(0) if mask.dim() else mask):
        assert count_kept(seen) == int(seen.sum())
        assert keeps_everything(seen) == bool(seen.all())


def test_of_a_part_of_a_larger_one():
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:, ::2] = True
    assert count_kept(mask[1:4, ::2]) == 12
    assert keeps_everything(mask[1:4, ::2])
    assert not keeps_everything(mask)


def test_one_pruned_weight_is_seen_wherever_it_is():
    for place in (0, 1, 500, 998, 999):
        mask = torch.ones(1000, dtype=torch.bool)
        mask[place] = False
        assert not keeps_everything(mask)
        assert count_kept(mask) == 999


def test_in_inference_mode_and_of_inference_tensors():
    with torch.inference_mode():
        mask = torch.ones(9, dtype=torch.bool)
        assert keeps_everything(mask)
    assert count_kept(mask) == 9
