from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_fast.ops import MagnitudeThreshold, magnitude_threshold, prune_by_magnitude
from lth_fast.ops.magnitude_threshold import MAGNITUDE_DTYPES, reference, reference_prune_by_magnitude

Masks = Sequence[Tensor | None]

# Without and with a sample, whole vectors and rests. Each problem has 4/3 as many weights.
SIZES = [1, 7, 8, 9, 6_141, 6_147, 50_001]
SHARES = [0.0, 0.001, 0.2, 0.5, 0.99, 1.0]


def random_masks(weights: Sequence[Tensor], density: float) -> list[Tensor]:
    return [torch.rand(weight.shape) < density for weight in weights]


def count_survivors(weights: Sequence[Tensor], masks: Masks) -> int:
    return sum(w.numel() if m is None else int(m.sum()) for w, m in zip(weights, masks, strict=True))


def assert_as_defined(weights: Sequence[Tensor], k: int, masks: Masks | None = None) -> None:
    every_mask = [None] * len(weights) if masks is None else masks
    found, expected = magnitude_threshold(weights, k, masks), reference(weights, k, every_mask)
    assert [value.dtype for value in found] == [weights[0].dtype, torch.int64, torch.int64]
    assert [value.item() for value in found] == [value.item() for value in expected]
    new_masks = prune_by_magnitude(weights, k, masks)
    for new_mask, expected_mask in zip(new_masks, reference_prune_by_magnitude(weights, k, every_mask), strict=True):
        assert new_mask.dtype == torch.bool
        assert new_mask.is_contiguous()
        assert torch.equal(new_mask, expected_mask)
    survivors = count_survivors(weights, every_mask)
    assert found.survivors.item() == survivors
    assert count_survivors(weights, new_masks) == survivors - k


def test_on_a_handful_of_weights_the_smallest_go_and_of_equals_the_first() -> None:
    weights = [torch.tensor([[3.0, -1.0], [2.0, 1.0]]), torch.tensor([-1.0, 0.5])]
    assert magnitude_threshold(weights, 3) == MagnitudeThreshold(torch.tensor(1.0), torch.tensor(2), torch.tensor(6))
    first, second = prune_by_magnitude(weights, 3)
    assert first.tolist() == [[True, False], [True, False]]
    assert second.tolist() == [True, False]


@pytest.mark.usefixtures("kernels")
def test_survivors_alone_are_ranked() -> None:
    weight, mask = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, True, False, True])
    assert magnitude_threshold([weight], 1, [mask]).threshold == 2.0
    assert prune_by_magnitude([weight], 1, [mask])[0].tolist() == [False, False, False, True]


@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_compact_values_of_the_survivors_are_ranked_like_the_weights_under_their_masks(dtype: torch.dtype) -> None:
    weights = [torch.randn(60, 50).to(dtype), torch.randn(7, 9, 3).to(dtype), torch.randn(40, 30).to(dtype).t()]
    masks = random_masks(weights, 0.3)
    values = [weight[mask] for weight, mask in zip(weights, masks, strict=True)]
    k = count_survivors(weights, masks) // 2
    assert magnitude_threshold(values, k) == magnitude_threshold(weights, k, masks)
    dense = prune_by_magnitude(weights, k, masks)
    for kept, new_mask, mask in zip(prune_by_magnitude(values, k), dense, masks, strict=True):
        assert torch.equal(kept, new_mask[mask])


def test_the_given_masks_and_weights_stay_as_they_are() -> None:
    weights = [torch.randn(300)]
    masks = random_masks(weights, 0.5)
    before = weights[0].clone(), masks[0].clone()
    prune_by_magnitude(weights, 100, masks)
    assert torch.equal(weights[0], before[0])
    assert torch.equal(masks[0], before[1])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("density", [None, 0.5, 0.01])
def test_exactly_k_are_pruned_as_defined_at_every_size_and_share(dtype: torch.dtype, density: float | None) -> None:
    for size in SIZES:
        weights = [torch.randn(size).to(dtype), torch.randn(3, size // 3).to(dtype) * 0.1]
        masks: Masks = [None, None] if density is None else random_masks(weights, density)
        survivors = count_survivors(weights, masks)
        for share in SHARES if size < 10_000 else [0.2]:
            assert_as_defined(weights, int(share * survivors), masks)


small_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0**-14, -(2.0**-24), 6.0e4])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor | None], int]:
    """Some tensors with many ties, zeros and denormals, in any memory layout, and a k that fits."""
    dtype = draw(st.sampled_from(MAGNITUDE_DTYPES))
    weights, masks = [], []
    for shape in draw(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=5)):
        count = int(torch.tensor(shape, dtype=torch.int64).prod())
        values = draw(st.lists(small_values, min_size=count, max_size=count))
        order = draw(st.permutations(range(len(shape))))
        weight = torch.tensor(values, dtype=dtype).reshape(shape).permute(order)
        bits = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))
        weights.append(weight)
        masks.append(None if bits is None else torch.tensor(bits, dtype=torch.bool).reshape(weight.shape))
    return weights, masks, draw(st.integers(0, count_survivors(weights, masks)))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_any_problem_with_ties_is_solved_as_defined(problem: tuple[list[Tensor], list[Tensor | None], int]) -> None:
    weights, masks, k = problem
    assert_as_defined(weights, k, masks)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(MAGNITUDE_DTYPES),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 5, 300, 70_000]),
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=4),
    densities=st.lists(st.sampled_from([None, 0.0, 0.03, 0.5, 1.0]), min_size=4, max_size=4),
    share=st.floats(0, 1),
)
def test_larger_problems_with_few_or_many_distinct_magnitudes_are_solved_as_defined(
    dtype: torch.dtype, seed: int, levels: int, sizes: list[int], densities: list[float | None], share: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = [(torch.randint(-levels, levels + 1, (size,), generator=draw) / levels).to(dtype) for size in sizes]
    masks = [
        None if density is None else torch.rand(weight.shape, generator=draw) < density
        for weight, density in zip(weights, densities, strict=False)
    ]
    assert_as_defined(weights, int(share * count_survivors(weights, masks)), masks)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize(
    "weight",
    [
        torch.full((60_003,), -0.25),
        torch.zeros(60_003),
        torch.cat([torch.zeros(30_000), torch.randn(30_003)]),
        torch.cat([torch.randn(30_003), torch.full((30_000,), 3.0)]),
        torch.randn(60_003).sort().values,
        torch.randn(60_003).abs().sort(descending=True).values,
        torch.randn(256).repeat(235),
        torch.tensor([0.0] * 63 + [1.0]).repeat(940),
        torch.randn(60_003).exp().pow(3).clamp(max=6.0e4),
    ],
    ids=["equal", "zero", "half zero", "half 3", "ascending", "descending", "periodic", "1 in 64", "heavy tails"],
)
def test_orders_and_ties_that_mislead_a_sample_change_nothing(weight: Tensor, dtype: torch.dtype) -> None:
    weight = weight.to(torch.get_default_device(), dtype)
    for k in (1, 30_000, 30_001, 45_000, weight.numel()):
        assert_as_defined([weight], k)


def sampled_places(total: int) -> Tensor:
    """Where the sample looks, as csrc/cpu/magnitude_threshold.cpp draws it."""
    run = 16
    runs = int(total ** (2 / 3)) // run
    stretch = total // runs
    starts = [i * stretch + (((i * 0x9E3779B97F4A7C15) % 2**64 >> 32) * stretch >> 32) for i in range(runs)]
    places = torch.tensor(starts)[:, None] // run * run + torch.arange(run)
    return places[places < total]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("factor", [100.0, 0.01], ids=["too large", "too small"])
def test_a_sample_of_weights_that_are_all_too_large_or_too_small_changes_nothing(
    dtype: torch.dtype, factor: float
) -> None:
    weight = torch.rand(100_003) + 1
    weight[sampled_places(weight.numel())] *= factor
    for k in (20_000, 50_000, 90_000):
        assert_as_defined([weight.to(dtype)], k)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_a_threshold_just_below_where_the_sample_looks_for_it_is_found(dtype: torch.dtype) -> None:
    total, below, near = 100_003, 40_000, 4_000
    places = sampled_places(total)
    for _ in range(5):  # nor does it matter what an earlier search left in memory
        weight = torch.rand(total) + 2
        weight[:below] = 0.5 + torch.rand(below) / 2
        weight[below : below + near] = 1 + torch.rand(near) / 40
        weight = weight[torch.randperm(total)]
        weight[places] = 1 + torch.rand(len(places)) / 17
        assert_as_defined([weight.to(dtype)], below + near // 2)  # 1.013; by the sample 1.025


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_thresholds_at_and_one_rounding_beside_the_only_magnitude_the_sample_saw_are_found(dtype: torch.dtype) -> None:
    total, below, eps = 100_003, 40_000, torch.finfo(dtype).eps
    places = sampled_places(total)
    weight = torch.full((total,), 1 + eps, dtype=dtype)
    weight[:below] = 1 - eps / 2  # no number of this dtype lies between these three
    weight = weight[torch.randperm(total)]
    weight[places] = 1
    below = int((weight < 1).sum())
    for k in (below, below + 1, below + len(places), below + len(places) + 1):
        assert_as_defined([weight], k)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("crowd", [1.3, 1.5, 1.7], ids=["below", "at", "above"])
def test_weights_may_crowd_anywhere_around_the_place_where_the_threshold_is_looked_for(
    dtype: torch.dtype, crowd: float
) -> None:
    total, near = 100_003, 25_000
    places = sampled_places(total)
    weight = torch.cat([crowd + (torch.rand(near) - 0.5) / 200, torch.tensor([0.5, 3.0]).repeat(total)])[:total]
    low_and_high_runs = torch.tensor([1.0, 1.5]).repeat_interleave(16).repeat(total)[: len(places)]
    weight[places] = low_and_high_runs + torch.rand(len(places)) / 2  # which leads to a window from 1.25 to 1.75
    assert_as_defined([weight.to(dtype)], total // 2)


@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_few_survivors_among_many_weights_are_ranked(dtype: torch.dtype) -> None:
    pruned, some = torch.randn(500_000).to(dtype), torch.randn(10_000).to(dtype)
    for k in (1, 5_000, 10_000):
        assert_as_defined([pruned, some], k, [torch.zeros(pruned.shape, dtype=torch.bool), None])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_denormals_are_ordered_and_minus_zero_ties_with_zero(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    step = tiny * torch.finfo(dtype).eps  # the smallest denormal
    weight = torch.tensor([tiny, -2 * step, -0.0, step, 0.0, -step], dtype=dtype)
    assert weight[3] != 0
    assert prune_by_magnitude([weight], 1)[0].tolist() == [True, True, False, True, True, True]
    assert prune_by_magnitude([weight], 3)[0].tolist() == [True, True, False, False, False, True]
    assert prune_by_magnitude([weight], 5)[0].tolist() == [True, False, False, False, False, False]
    assert magnitude_threshold([weight], 5).threshold.item() == 2 * step


@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_the_largest_finite_magnitude_can_be_the_threshold(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    weight = torch.full((9_000,), -largest, dtype=dtype)
    assert magnitude_threshold([weight], 9_000).threshold.item() == largest
    assert_as_defined([weight], 4_321)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(230, 170).t(),
        torch.randn(230, 340)[:, ::2],
        torch.randn(40, 30, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(170).expand(230, 170),
        torch.randn(230, 1).expand(230, 170),
        torch.randn(17, 9, 5, 6, 7)[3:, :, 1:4].permute(4, 0, 2, 3, 1),
        torch.randn(()).expand(20_000),
        torch.randn(90_000)[70_000:],
    ],
    ids=["transposed", "strided", "channels last", "rows", "columns", "permuted part", "one value", "offset"],
)
def test_the_memory_layout_does_not_show(weight: Tensor) -> None:
    mask = (torch.rand(weight.shape[::-1]) > 0.3).permute(*range(weight.dim())[::-1])
    contiguous = weight.contiguous()
    for masks in ([None, None], [mask, None]):
        k = count_survivors([weight, weight], masks) // 3
        assert_as_defined([weight, contiguous], k, masks)
        out = prune_by_magnitude([weight, contiguous], k, masks)
        expected = prune_by_magnitude([contiguous, contiguous], k, [m if m is None else m.contiguous() for m in masks])
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.usefixtures("kernels")
def test_a_bool_of_any_byte_but_zero_is_a_survivor() -> None:
    weight = torch.randn(256)
    bytes_ = torch.arange(256, dtype=torch.uint8)[torch.randperm(256)]
    for size in (256, 251):
        out = prune_by_magnitude([weight[:size]], 99, [bytes_[:size].view(torch.bool)])[0]
        assert torch.equal(out, prune_by_magnitude([weight[:size]], 99, [bytes_[:size] != 0])[0])
        assert set(out.view(torch.uint8).tolist()) == {0, 1}


def _normal() -> Tensor:
    return torch.randn(8_500_003)


def _with_a_sample(weight: Tensor, factor: float) -> Tensor:
    weight[sampled_places(weight.numel())] *= factor
    return weight


def _a_rounding_apart() -> Tensor:
    """Those around the threshold, an eighth of all, stand at the end of the first tensor, too."""
    steps = torch.randint(1000, (8_500_003,))
    steps[2_999_936:2_999_999] = torch.arange(94, 157)
    return 1 + steps * 2.0**-23


MORE_THAN_CACHED: dict[str, Callable[[], Tensor]] = {
    "a guess too low": lambda: _with_a_sample(_normal(), 0.96),
    "a guess too high": lambda: _with_a_sample(_normal(), 1.04),
    "a rounding apart": _a_rounding_apart,
    "thousands of ties": lambda: (_normal() * 1000).round(),
    "ties in their millions": lambda: _normal().round(),
    "a misleading sample": lambda: _with_a_sample(torch.rand(8_500_003) + 1, 100),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", MORE_THAN_CACHED)
def test_masks_larger_than_the_caches_are_those_of_the_definition(case: str, dtype: torch.dtype, masked: bool) -> None:
    """The pass that finds the threshold writes them, too, with a guess of it, and puts right where that was wrong."""
    weight = MORE_THAN_CACHED[case]().to(dtype)
    weights = [weight[:2_999_999], weight[3_000_000:6_000_000].view(3, -1).t(), weight[6_000_000:]]
    masks: Masks = random_masks(weights, 0.5) if masked else [None] * 3
    k = count_survivors(weights, masks) // 8  # few enough around it to be collected
    found = torch.cat([mask.flatten() for mask in prune_by_magnitude(weights, k, masks)])

    threshold, tie_budget, survivors = magnitude_threshold(weights, k, masks)
    magnitudes = torch.cat([weight.flatten() for weight in weights]).abs()
    kept = torch.cat([mask.flatten() for mask in masks if mask is not None]) if masked else magnitudes >= 0
    ties = kept & (magnitudes == threshold)
    assert torch.equal(found, kept & ((magnitudes > threshold) | (ties & (ties.cumsum(0) > tie_budget))))
    assert found.sum() == survivors - k


@pytest.mark.usefixtures("kernels")
def test_empty_tensors_take_no_part() -> None:
    weights = [torch.empty(0, 3), torch.tensor([2.0, -1.0]), torch.empty(0)]
    assert [mask.tolist() for mask in prune_by_magnitude(weights, 1)] == [[], [True, False], []]
    assert_as_defined([torch.empty(0)], 0)


@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
def test_the_masks_do_not_depend_on_the_number_of_threads(
    dtype: torch.dtype, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    weights = [torch.randn(611, 503).to(dtype), torch.randn(900_001).to(dtype), torch.randn(503, 611).to(dtype).t()]
    for masks in ([None] * 3, random_masks(weights, 0.4)):
        for share in (0.01, 0.5):
            k = int(share * count_survivors(weights, masks))

            def work(k: int = k, masks: Masks = masks) -> Tensor:
                threshold = torch.stack([value.double() for value in magnitude_threshold(weights, k, masks)])
                pruned = torch.cat([mask.reshape(-1) for mask in prune_by_magnitude(weights, k, masks)])
                return torch.cat([threshold, pruned])

            alone = on_threads(1, work)
            assert torch.equal(on_threads(2, work), alone)
            assert torch.equal(on_threads(5, work), alone)


def test_more_than_two_billion_weights_are_counted_and_ranked_in_64_bits() -> None:
    # Rows of a stride of 0 take no memory.
    columns, rows = 2**10 + 3, 2**21
    row = torch.rand(columns, dtype=torch.bfloat16) + 1
    weights = [row.expand(rows, columns), torch.full((5,), 9.0, dtype=torch.bfloat16)]
    survivors = rows * columns + 5
    k = 2**31 + 12_345
    found = magnitude_threshold(weights, k)
    expected = row.sort().values[(k - 1) // rows]
    assert found.survivors.item() == survivors
    assert found.threshold == expected
    assert found.tie_budget.item() == k - rows * int((row < expected).sum())
    assert magnitude_threshold(weights, survivors - 4) == MagnitudeThreshold(
        torch.tensor(9.0, dtype=torch.bfloat16), torch.tensor(1), torch.tensor(survivors)
    )


MEMORY_PROBE = """
import re, torch
from lth_fast.ops import magnitude_threshold, prune_by_magnitude

def resident(which):
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(which + r":\\s+(\\d+) kB", status.read())[1])

def share_of_memory(select, weights, k):
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset_the_peak:
        reset_the_peak.write("5")
    masks = [out for out in select(weights, k) if out.dtype == torch.bool]
    return (resident("VmHWM") - before - sum(mask.nbytes for mask in masks)) / sum(weight.nbytes for weight in weights)

torch.set_num_threads(1)
prune_by_magnitude([torch.randn(300_000)], 60_000)
weights = [torch.randn(2_000_003) for _ in range(6)]
print(share_of_memory(magnitude_threshold, weights, 6_000_009), share_of_memory(prune_by_magnitude, weights, 6_000_009))
for weight in weights:
    weight[:1_000_000] = 0
print(share_of_memory(magnitude_threshold, weights, 6_000_100), share_of_memory(prune_by_magnitude, weights, 6_000_100))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of the resident memory from /proc")
def test_besides_the_masks_it_takes_less_than_three_per_cent_of_the_weights_memory() -> None:
    # Every larger block comes from the system and goes back to it: memory held in reserve would hide what is taken.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    probe = [sys.executable, "-c", MEMORY_PROBE]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True, timeout=120)
    normal, normal_with_masks, half_zero, half_zero_with_masks = map(float, done.stdout.split())
    assert 0.001 < normal < 0.03  # the collected keys are seen by this measure
    assert normal_with_masks < 0.03
    assert half_zero < 0.03
    assert half_zero_with_masks < 0.03


@pytest.mark.parametrize("function", [magnitude_threshold, prune_by_magnitude])
def test_gradients_neither_hinder_nor_flow(function: Callable[..., Sequence[Tensor]]) -> None:
    weight = torch.nn.Parameter(torch.randn(20))
    assert not any(out.requires_grad for out in function([weight], 7))
    with torch.inference_mode():
        function([weight], 7)


def test_shapes_are_known_without_values() -> None:
    weights = [
        torch.empty(3, 7, device="meta", dtype=torch.float16),
        torch.empty(0, device="meta", dtype=torch.float16),
    ]
    threshold = magnitude_threshold(weights, 3)
    assert [(value.shape, value.dtype) for value in threshold] == [
        ((), torch.float16),
        ((), torch.int64),
        ((), torch.int64),
    ]
    assert [(mask.shape, mask.dtype) for mask in prune_by_magnitude(weights, 3)] == [
        ((3, 7), torch.bool),
        ((0,), torch.bool),
    ]


def test_the_registrations_are_consistent() -> None:
    weights = [torch.randn(5, 7), torch.randn(30, 4).t(), torch.empty(0)]
    masks = [None, *random_masks(weights[1:], 0.5)]
    torch.library.opcheck(torch.ops.lth_fast.magnitude_threshold, (weights, 12, masks))
    torch.library.opcheck(torch.ops.lth_fast.prune_by_magnitude, (weights, 12, masks))


NATIVE_AND_REFERENCE = pytest.mark.parametrize(
    ("name", "function"),
    [
        ("magnitude_threshold", magnitude_threshold),
        ("magnitude_threshold", reference),
        ("prune_by_magnitude", prune_by_magnitude),
        ("prune_by_magnitude", reference_prune_by_magnitude),
    ],
    ids=["threshold", "threshold reference", "prune", "prune reference"],
)


@pytest.mark.usefixtures("kernels")
@NATIVE_AND_REFERENCE
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_with_the_index_of_their_tensor(
    name: str, function: Callable[..., object], dtype: torch.dtype, value: float
) -> None:
    for place in (0, 11, 12_000):
        weights = [torch.randn(size).to(dtype) for size in (40, 0, 12_001, 30)]
        weights[2][place] = weights[3][5] = value
        for k in (0, 30):
            with pytest.raises(ValueError, match=rf"{name}: weights\[2\] holds NaN or infinity among its survivors"):
                function(weights, k, [None] * 4)


@pytest.mark.usefixtures("kernels")
@NATIVE_AND_REFERENCE
@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_a_large_tensor_is_refused_that_is_nan_or_infinity_for_the_most_part(
    name: str, function: Callable[..., object], dtype: torch.dtype, value: float, share: float
) -> None:
    for size in (8_193, 60_000):  # sampled
        weights = [torch.randn(size).to(dtype)]
        weights[0][torch.rand(size) < share] = value
        with pytest.raises(ValueError, match=rf"{name}: weights\[0\] holds NaN or infinity among its survivors"):
            function(weights, size // 5, [None])


@pytest.mark.usefixtures("kernels")
@NATIVE_AND_REFERENCE
def test_nan_where_a_mask_has_pruned_is_no_ones_business(name: str, function: Callable[..., object]) -> None:
    weight = torch.randn(100)
    mask = torch.rand(100) > 0.5
    mask[3] = mask[98] = False
    weight[3], weight[98] = float("nan"), float("inf")
    finite = weight.masked_fill(~mask, 0.0)
    torch.testing.assert_close(function([weight], 10, [mask]), function([finite], 10, [mask]), rtol=0, atol=0)


@pytest.mark.usefixtures("kernels")
@NATIVE_AND_REFERENCE
@pytest.mark.parametrize("k", [-1, 51])
def test_a_k_beyond_the_survivors_is_refused(name: str, function: Callable[..., object], k: int) -> None:
    mask = torch.cat([torch.zeros(20, dtype=torch.bool), torch.ones(30, dtype=torch.bool)])
    with pytest.raises(ValueError, match=rf"{name}: k must be between 0 and the 50 survivors, got {k}"):
        function([torch.randn(50), torch.randn(20)], k, [mask, None])


@NATIVE_AND_REFERENCE
@pytest.mark.parametrize(
    ("weights", "masks", "complaint"),
    [
        ([torch.ones(3), torch.ones(3)], [None], r"masks must hold one entry per weight \(2\), got 1"),
        ([torch.ones(3).int()], [None], r"weights\[0\] must be float32.*got .*[Ii]nt"),
        ([torch.ones(3), torch.ones(3).double()], [None, None], r"weights must have one dtype.*weights\[1\]"),
        ([torch.ones(3), torch.ones(3)], [None, torch.ones(3)], r"masks\[1\] must be .*bool.*got .*[Ff]loat"),
        ([torch.ones(3)], [torch.ones(4) > 0], r"masks\[0\] must .*shape .*\[3\].*got .*\[4\]"),
    ],
    ids=["number of masks", "integers", "two dtypes", "dtype of a mask", "shape of a mask"],
)
def test_tensors_that_do_not_fit_are_refused(
    name: str, function: Callable[..., object], weights: list[Tensor], masks: Masks, complaint: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}: {complaint}"):
        function(weights, 1, masks)


@pytest.mark.parametrize("function", [magnitude_threshold, prune_by_magnitude])
def test_an_empty_list_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="weights must hold at least one tensor, got none"):
        function([], 0)
