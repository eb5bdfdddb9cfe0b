from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lth_fast.prune import prune_smallest


def pruned_places(mask: Tensor) -> list[int]:
    return (~mask).reshape(-1).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 2, 3, 3)], ids=str)
def test_exactly_k_are_pruned_for_every_k(shape: tuple[int, ...]) -> None:
    scores = torch.randn(shape).abs()
    for k in range(scores.numel() + 1):
        mask = prune_smallest(scores, k)
        assert (mask.dtype, mask.shape) == (torch.bool, scores.shape)
        assert int((~mask).sum()) == k
        if 0 < k < scores.numel():
            assert scores[~mask].max() <= scores[mask].min()


def test_exactly_k_survivors_are_pruned_for_every_k() -> None:
    scores, before = torch.randn(6, 7).abs(), torch.rand(6, 7) > 0.4
    survivors = int(before.sum())
    for k in range(survivors + 1):
        after = prune_smallest(scores, k, before)
        assert not (after & ~before).any()
        assert int(after.sum()) == survivors - k
        if 0 < k < survivors:
            assert scores[before & ~after].max() <= scores[after].min()


def test_among_equal_scores_the_lowest_flat_index_goes_first() -> None:
    scores = torch.ones(50, 40)
    for k in (1, 17, 999, 2000):
        assert pruned_places(prune_smallest(scores, k)) == list(range(k))
    scores = torch.tensor([[2.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert pruned_places(prune_smallest(scores, 3)) == [1, 2, 3]
    before = torch.tensor([[True, False, True], [True, True, True]])
    assert pruned_places(prune_smallest(scores, 2, before)) == [1, 2, 3]


def test_both_zeros_are_equal_scores() -> None:
    assert pruned_places(prune_smallest(torch.tensor([0.0, -0.0, 0.0, -0.0]), 2)) == [0, 1]


def test_a_survivor_with_score_zero_is_counted_and_a_pruned_one_is_not() -> None:
    scores, before = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0]), torch.tensor([False, True, True, True, True])
    assert pruned_places(prune_smallest(scores, 2, before)) == [0, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_floating_dtype_is_ranked_by_value(dtype: torch.dtype) -> None:
    scores = torch.tensor([3.0, torch.inf, 1e-6, 2.0], dtype=dtype)
    assert pruned_places(prune_smallest(scores, 3)) == [0, 2, 3]


def test_scores_count_in_flat_index_order_whatever_the_memory_layout() -> None:
    scores = torch.ones(3, 4).t()
    assert pruned_places(prune_smallest(scores, 5)) == [0, 1, 2, 3, 4]


def test_the_arguments_are_left_as_they_are() -> None:
    scores, before = torch.rand(9, requires_grad=True), torch.rand(9) > 0.3
    copies = scores.detach().clone(), before.clone()
    after = prune_smallest(scores, 1, before)
    after.fill_(False)
    assert torch.equal(scores, copies[0])
    assert torch.equal(before, copies[1])


@pytest.mark.parametrize("k", [-1, 4])
def test_a_count_out_of_range_is_refused(k: int) -> None:
    before = torch.tensor([True, True, False, True])
    with pytest.raises(ValueError, match=f"k must be between 0 and the 3 survivors, got {k}"):
        prune_smallest(torch.rand(4), k, before)


def test_nan_among_the_survivors_is_refused() -> None:
    scores = torch.tensor([1.0, torch.nan, 2.0])
    with pytest.raises(ValueError, match="NaN among the survivors"):
        prune_smallest(scores, 0)
    assert pruned_places(prune_smallest(scores, 1, ~scores.isnan())) == [0, 1]


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must have the shape of scores \[2, 3\], got \[3, 2\]"):
        prune_smallest(torch.rand(2, 3), 1, torch.ones(3, 2) > 0)
