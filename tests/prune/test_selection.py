from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_fast.prune import prune_lowest, prune_smallest


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


@pytest.mark.parametrize("infinite", [False, True], ids=["whole numbers", "infinite"])
def test_equal_scores_that_are_sorted_go_in_the_same_order(infinite: bool) -> None:
    scores = torch.randint(0, 3, (40, 50))
    scores = torch.where(scores == 2, torch.inf, scores.float()) if infinite else scores
    before = torch.rand(40, 50) > 0.3
    order = sorted(pruned_places(~before), key=lambda place: float(scores.reshape(-1)[place]))
    for k in (1, 300, 700, len(order)):
        assert pruned_places(prune_smallest(scores, k, before) | ~before) == sorted(order[:k])


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


@pytest.mark.parametrize(
    "scores", [torch.tensor([0.4, 0.1, 0.2, 0.3]), torch.tensor([4, 1, 2, 3])], ids=["float32", "int64"]
)
@pytest.mark.parametrize("k", [-1, 4])
def test_a_count_out_of_range_is_refused(k: int, scores: Tensor) -> None:
    before = torch.tensor([True, True, False, True])
    with pytest.raises(ValueError, match=f"k must be between 0 and the 3 survivors, got {k}"):
        prune_smallest(scores, k, before)


def test_nan_among_the_survivors_is_refused() -> None:
    scores = torch.tensor([1.0, torch.nan, 2.0])
    with pytest.raises(ValueError, match="NaN among the survivors"):
        prune_smallest(scores, 0)
    assert pruned_places(prune_smallest(scores, 1, ~scores.isnan())) == [0, 1]


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must have the shape of scores \[2, 3\], got \[3, 2\]"):
        prune_smallest(torch.rand(2, 3), 1, torch.ones(3, 2) > 0)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def lowest_by_sorting(scores: list[Tensor], k: int, masks: list[Tensor | None]) -> list[Tensor]:
    """One stable sort of everything joined: what the list is selected like."""
    kept = [torch.ones_like(s, dtype=torch.bool) if m is None else m for s, m in zip(scores, masks, strict=True)]
    candidates = torch.cat([s[m] for s, m in zip(scores, kept, strict=True)])
    chosen = torch.ones_like(candidates, dtype=torch.bool)
    chosen[candidates.sort(stable=True).indices[:k]] = False
    parts = chosen.split([int(m.sum()) for m in kept])
    return [m.masked_scatter(m, part) for m, part in zip(kept, parts, strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    levels=st.sampled_from([0, 1, 3, 1000]),
    shift=st.sampled_from([-5.0, -0.5, 0.0, 5.0]),
    density=st.sampled_from([None, 0.0, 0.4, 1.0]),
    share=st.floats(0, 1),
)
def test_signed_scores_of_several_tensors_are_selected_as_by_one_stable_sort(
    dtype: torch.dtype,
    seed: int,
    sizes: list[int],
    levels: int,
    shift: float,
    density: float | None,
    share: float,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores, masks = [], []
    for size in sizes:
        values = torch.randint(-levels, levels + 1, (3, size), generator=draw) / max(1, levels) + shift
        scores.append(values.to(dtype).t() if size % 2 else values.to(dtype))
        masks.append(None if density is None else torch.rand(scores[-1].shape, generator=draw) < density)
    survivors = sum(s.numel() if m is None else int(m.sum()) for s, m in zip(scores, masks, strict=True))
    k = round(share * survivors)
    found = prune_lowest(scores, k, masks)
    assert all(mask.is_contiguous() for mask in found)
    for mask, expected in zip(found, lowest_by_sorting(scores, k, masks), strict=True):
        assert torch.equal(mask, expected)


def test_equal_scores_below_zero_go_in_the_order_of_tensors_and_indices() -> None:
    scores = [torch.tensor([-1.0, 2.0, -1.0]), torch.tensor([-1.0, -3.0])]
    order = [(1, 1), (0, 0), (0, 2), (1, 0), (0, 1)]
    for k in range(6):
        masks = prune_lowest(scores, k)
        assert {(i, j) for i, mask in enumerate(masks) for j in pruned_places(mask)} == set(order[:k])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_score_that_cannot_be_ranked_is_refused_with_its_tensor(value: float, k: int) -> None:
    scores = [torch.tensor([-1.0, -2.0]), torch.tensor([-4.0, value, 3.0])]
    with pytest.raises(ValueError, match=r"^scores\[1\] holds NaN or infinity"):
        prune_lowest(scores, k)
    prune_lowest(scores, k, [None, torch.tensor([True, False, True])])


@pytest.mark.parametrize("k", [-1, 6])
def test_a_count_beyond_the_survivors_of_the_list_is_refused(k: int) -> None:
    scores = [torch.tensor([-1.0, -2.0]), torch.tensor([-4.0, 1.0, 3.0])]
    with pytest.raises(ValueError, match=f"k must be between 0 and the 5 survivors, got {k}"):
        prune_lowest(scores, k)


@pytest.mark.parametrize(
    ("scores", "masks", "error", "complaint"),
    [
        ([], None, ValueError, "scores must hold at least one tensor, got none"),
        ([torch.tensor([1, 2])], None, RuntimeError, r"scores\[0\] must be float32, .*, got Long"),
        ([torch.rand(3)], [torch.ones(2) > 0], RuntimeError, r"masks\[0\] must have the shape of scores\[0\] \[3\]"),
        (
            [torch.rand(3, device="meta")],
            None,
            ValueError,
            "scores: expected values to rank, got a tensor on the meta device",
        ),
    ],
    ids=["none", "dtype", "mask", "meta"],
)
def test_wrong_lists_are_refused_by_the_names_of_the_arguments(
    scores: list[Tensor], masks: list[Tensor | None] | None, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=f"^{complaint}"):
        prune_lowest(scores, 0, masks)


def test_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="scores: expected values to rank, got a tensor on the meta device"):
        prune_smallest(torch.rand(3, device="meta"), 1)
