from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lth_fast.ops import magnitude_threshold, prune_by_magnitude

INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}
DTYPES = list(INFINITY)
CHUNK = 2**14  # weights per block


class MagnitudeTensor(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("new_mask", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class MagnitudeOutcome(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_uint64),
        ("tie_budget", ctypes.c_int64),
        ("survivors", ctypes.c_int64),
        ("refused_tensor", ctypes.c_int64),
        ("k", ctypes.c_int64),
    )


def search(
    kernels: ctypes.CDLL, weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor], MagnitudeOutcome]:
    """Threshold, tie budget and survivors; the new masks; what the workspace says."""
    dtype = weights[0].dtype
    threshold = torch.empty((), dtype=dtype)
    tie_budget, survivors = torch.empty((), dtype=torch.int64), torch.empty((), dtype=torch.int64)
    # 7: neither false nor true.
    new_masks = [torch.full(weight.shape, 7, dtype=torch.uint8) for weight in weights]
    tensors = (MagnitudeTensor * len(weights))(
        *(
            MagnitudeTensor(
                weight.data_ptr(), None if mask is None else mask.data_ptr(), new_mask.data_ptr(), weight.numel()
            )
            for weight, mask, new_mask in zip(weights, masks, new_masks, strict=True)
        )
    )
    function = getattr(kernels, f"search_{8 * dtype.itemsize}")
    function.restype = MagnitudeOutcome
    outcome = function(
        tensors,
        ctypes.c_int64(len(weights)),
        ctypes.c_int64(k),
        ctypes.c_uint64(INFINITY[dtype]),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (threshold, tie_budget, survivors)),
    )
    for new_mask in new_masks:
        assert set(new_mask.unique().tolist()) <= {0, 1}
    return (threshold, tie_budget, survivors), [new_mask.bool() for new_mask in new_masks], outcome


def assert_as_on_the_cpu(
    kernels: ctypes.CDLL, weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None] | None = None
) -> None:
    every_mask = [None] * len(weights) if masks is None else masks
    found, new_masks, _ = search(kernels, weights, k, every_mask)
    assert [value.item() for value in found] == [value.item() for value in magnitude_threshold(weights, k, masks)]
    for new_mask, expected in zip(new_masks, prune_by_magnitude(weights, k, masks), strict=True):
        assert torch.equal(new_mask, expected)


def random_masks(weights: Sequence[Tensor], density: float) -> list[Tensor]:
    return [torch.rand(weight.shape) < density for weight in weights]


def count_survivors(masks: Sequence[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.2, 0.5, 1.0])
def test_threshold_and_masks_are_those_of_the_cpu(kernels: ctypes.CDLL, dtype: torch.dtype, share: float) -> None:
    weights = [torch.randn(size).to(dtype) for size in (CHUNK + 1_000, 0, 1, 300)]
    assert_as_on_the_cpu(kernels, weights, int(share * sum(weight.numel() for weight in weights)))
    masks = random_masks(weights, 0.3)
    assert_as_on_the_cpu(kernels, weights, int(share * count_survivors(masks)), masks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_of_equal_magnitudes_the_first_go_across_chunks_and_tensors(
    kernels: ctypes.CDLL, dtype: torch.dtype, distinct: int
) -> None:
    weights = [torch.randint(-distinct, distinct + 1, (size,)).to(dtype) for size in (CHUNK + 77, 40, CHUNK)]
    masks = random_masks(weights, 0.7)
    survivors = count_survivors(masks)
    for k in (1, 255, survivors // 3, survivors - 1):
        assert_as_on_the_cpu(kernels, weights, k, masks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormals_are_ordered_and_minus_zero_ties_with_zero(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    step = tiny * torch.finfo(dtype).eps
    weight = torch.tensor([tiny, -2 * step, -0.0, step, 0.0, -step, torch.finfo(dtype).max], dtype=dtype)
    for k in range(8):
        assert_as_on_the_cpu(kernels, [weight], k)


def test_more_tensors_than_one_launch_takes_are_one_list(kernels: ctypes.CDLL) -> None:
    weights = [torch.randint(-3, 4, (int(size),)).float() for size in torch.randint(0, 50, (260,))]
    total = sum(weight.numel() for weight in weights)
    for k in (0, 1, total // 2, total):
        assert_as_on_the_cpu(kernels, weights, k)


def test_a_bool_of_any_byte_but_zero_is_a_survivor(kernels: ctypes.CDLL) -> None:
    mask = torch.arange(256, dtype=torch.uint8)[torch.randperm(256)]
    weight = torch.randn(256)
    _, (new_mask,), _ = search(kernels, [weight], 99, [mask])
    assert torch.equal(new_mask, prune_by_magnitude([weight], 99, [mask != 0])[0])


def test_nothing_at_all_is_searched_without_a_complaint(kernels: ctypes.CDLL) -> None:
    assert_as_on_the_cpu(kernels, [torch.empty(0), torch.empty(0)], 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("k", [0, 30])
def test_nan_and_infinity_are_refused_with_their_tensor_and_nothing_is_pruned(
    kernels: ctypes.CDLL, dtype: torch.dtype, value: float, k: int
) -> None:
    weights = [torch.randn(size).to(dtype) for size in (40, 0, CHUNK + 5, 30)]
    weights[2][CHUNK + 1] = weights[3][5] = value
    masks = [torch.rand(weight.shape) < 0.9 for weight in weights]
    masks[2][CHUNK + 1] = masks[3][5] = True
    (threshold, tie_budget, survivors), new_masks, outcome = search(kernels, weights, k, masks)
    assert (outcome.refused_tensor, outcome.k) == (2, -1)
    assert threshold.isnan()
    assert (tie_budget.item(), survivors.item()) == (0, count_survivors(masks))
    assert all(torch.equal(new_mask, mask) for new_mask, mask in zip(new_masks, masks, strict=True))


def test_nan_where_a_mask_has_pruned_is_no_ones_business(kernels: ctypes.CDLL) -> None:
    weight, mask = torch.randn(100), torch.rand(100) > 0.5
    mask[3] = False
    weight[3] = float("nan")
    assert_as_on_the_cpu(kernels, [weight], 10, [mask])


@pytest.mark.parametrize("k", [-1, 51])
def test_a_k_beyond_the_survivors_is_refused_and_nothing_is_pruned(kernels: ctypes.CDLL, k: int) -> None:
    _, (new_mask,), outcome = search(kernels, [torch.randn(50)], k, [None])
    assert (outcome.refused_tensor, outcome.k, outcome.survivors) == (2**63 - 1, -1, 50)
    assert new_mask.all()
