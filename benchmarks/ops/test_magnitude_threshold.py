"""Global magnitude pruning of ResNet-50 and LeNet-300-100: against one pass of reading, stock pruning and NumPy.

The weights have torchvision's shapes and normal values of a scale per tensor; nothing is trained or downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.ops import magnitude_threshold, prune_by_magnitude

from ..alternation import alternate

RATE = 0.2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    everything = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(everything)


@pytest.fixture(scope="module")
def resnet50() -> list[Tensor]:
    """161 tensors, 25,557,032 weights."""
    draw = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in torchvision.models.resnet50().parameters()]
    return [torch.randn(s, generator=draw) * (0.001 + 0.1 * torch.rand((), generator=draw)) for s in shapes]


def count(weights: list[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def parameters_to_prune(weights: list[Tensor]) -> list[tuple[nn.Module, str]]:
    modules = [nn.Module() for _ in weights]
    for module, weight in zip(modules, weights, strict=True):
        module.weight = nn.Parameter(weight)
    return [(module, "weight") for module in modules]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_threshold_and_masks_take_at_most_four_reading_passes(
    benchmark: Any, resnet50: list[Tensor], share: float, masked: bool
) -> None:
    total = count(resnet50)
    masks = prune_by_magnitude(resnet50, total // 2) if masked else None
    k = int(share * (total - total // 2 if masked else total))
    result = alternate(
        benchmark, lambda: prune_by_magnitude(resnet50, k, masks), lambda: [weight.sum() for weight in resnet50]
    )
    benchmark.extra_info.update(bar=1 / 4, note=f"{1 / result.ratio:.2f} sums")
    assert result.reaches(1 / 4), f"{1 / result.ratio:.2f} times as long as sum() of every tensor, expected at most 4"


def test_a_second_thread_helps(benchmark: Any, resnet50: list[Tensor]) -> None:
    k = int(RATE * count(resnet50))

    def on(threads: int) -> Callable[[], object]:
        def work() -> object:
            torch.set_num_threads(threads)
            return prune_by_magnitude(resnet50, k)

        return work

    result = alternate(benchmark, on(2), on(1))
    benchmark.extra_info.update(note="2 threads against 1")
    assert result.ours > 0


def test_resnet50_is_sixty_times_faster_than_stock(benchmark: Any, resnet50: list[Tensor]) -> None:
    rounds = 3
    prepared = iter([parameters_to_prune(resnet50) for _ in range(2 * rounds + 2)])
    result = alternate(
        benchmark,
        lambda: prune_by_magnitude(resnet50, int(RATE * count(resnet50))),
        lambda: stock.global_unstructured(next(prepared), stock.L1Unstructured, amount=RATE),
        rounds=rounds,
    )
    benchmark.extra_info.update(bar=60)
    assert result.reaches(60), f"{result.ratio:.1f} times faster than torch.nn.utils.prune, expected 60"


def test_the_threshold_is_five_times_faster_than_a_partition_by_numpy(benchmark: Any, resnet50: list[Tensor]) -> None:
    k = int(RATE * count(resnet50))
    # Made beforehand: taking magnitudes and joining them is not counted against NumPy.
    joined = np.concatenate([weight.abs().reshape(-1).numpy() for weight in resnet50])
    assert magnitude_threshold(resnet50, k).threshold.item() == np.partition(joined, k - 1)[k - 1]
    result = alternate(
        benchmark, lambda: magnitude_threshold(resnet50, k), lambda: np.partition(joined, k - 1), rounds=9
    )
    benchmark.extra_info.update(bar=5)
    assert result.reaches(5), f"{result.ratio:.1f} times faster than numpy.partition, expected 5"


def test_the_masks_against_concatenation_partition_and_comparison_by_numpy(
    benchmark: Any, resnet50: list[Tensor]
) -> None:
    k = int(RATE * count(resnet50))
    arrays = [weight.numpy() for weight in resnet50]

    def numpy_masks() -> list[np.ndarray]:
        threshold = np.partition(np.abs(np.concatenate([array.reshape(-1) for array in arrays])), k - 1)[k - 1]
        return [np.abs(array) > threshold for array in arrays]

    result = alternate(benchmark, lambda: prune_by_magnitude(resnet50, k), numpy_masks, rounds=9)
    benchmark.extra_info.update(bar=5)
    assert result.reaches(5), f"{result.ratio:.1f} times faster than NumPy, expected 5"


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_lenet_takes_less_than_three_tenths_of_a_millisecond(benchmark: Any, masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) * 0.05 for shape in [(300, 784), (100, 300), (10, 100)]]
    masks = prune_by_magnitude(weights, count(weights) // 2) if masked else None
    k = int(RATE * count(weights) * (0.5 if masked else 1))
    # Called again and again, the weights in cache, as one says of an operation that it takes so long.
    benchmark.pedantic(lambda: prune_by_magnitude(weights, k, masks), rounds=30, iterations=10, warmup_rounds=3)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(bar_seconds=0.3e-3)
    assert median < 0.3e-3, f"{1e3 * median:.3f} ms, expected less than 0.3"


def test_lenet_against_stock(benchmark: Any) -> None:
    """Stock empties the caches before every call, as a level's training would: longer than the time above."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) * 0.05 for shape in [(300, 784), (100, 300), (10, 100)]]
    rounds = 30
    prepared = iter([parameters_to_prune(weights) for _ in range(2 * rounds + 2)])
    result = alternate(
        benchmark,
        lambda: prune_by_magnitude(weights, int(RATE * count(weights))),
        lambda: stock.global_unstructured(next(prepared), stock.L1Unstructured, amount=RATE),
        rounds=rounds,
    )
    assert result.ours > 0


def test_ties_in_their_millions_stay_linear(benchmark: Any, resnet50: list[Tensor]) -> None:
    """Half of the weights are zero without a mask, and k lies just behind them: no sample can place the window."""
    zeros = count(resnet50) // 2
    weights = [weight * mask for weight, mask in zip(resnet50, prune_by_magnitude(resnet50, zeros), strict=True)]
    result = alternate(
        benchmark,
        lambda: prune_by_magnitude(weights, zeros + 100),
        lambda: prune_by_magnitude(resnet50, zeros + 100),
        rounds=9,
    )
    benchmark.extra_info.update(note=f"{1 / result.ratio:.1f} times the usual time")
    assert result.reaches(1 / 8), f"{1 / result.ratio:.1f} times as long as without ties, expected at most 8"
