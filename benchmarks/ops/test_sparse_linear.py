"""sparse_linear, forward and backward, against the machine's sgemm rate, and on two threads against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.alternation import alternate, calls_in_a_turn
from benchmarks.layers import exact_mask, training_pass
from lth_fast.nn import SparseLinear

# Share of the sgemm rate of the same run by density, for up to 1,024 features; five points less above.
BARS = {0.5: 0.58, 0.2: 0.58, 0.1: 0.50, 0.05: 0.40}
BACKWARD_BARS = {0.2: 0.55}
LAYERS = [(784, 300), (1024, 1024), (4608, 512)]
LEAST_CALLS = 5


@pytest.fixture(autouse=True)
def denormals_flushed_on_both_sides() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("density", [0.2, 0.05])
@pytest.mark.parametrize(("features", "batch"), [((4608, 512), 64), ((4096, 4096), 256)], ids=str)
def test_two_threads(benchmark: Any, features: tuple[int, int], batch: int, density: float) -> None:
    if torch.get_num_threads() < 2:
        pytest.skip("torch has one thread only: OMP_NUM_THREADS, or one core")
    in_features, out_features = features
    sparse = SparseLinear.from_dense(nn.Linear(*features), exact_mask(torch.Size((out_features, in_features)), density))
    inputs, gradient = torch.randn(batch, in_features, requires_grad=True), torch.randn(batch, out_features)

    def on(threads: int) -> Callable[[], None]:
        work = training_pass(sparse, inputs, gradient)

        def counted() -> None:
            torch.set_num_threads(threads)
            work()

        return counted

    threads = torch.get_num_threads()
    least_calls = 1 if features == (4096, 4096) else LEAST_CALLS  # a call of which takes 0.1 s
    try:
        result = alternate(benchmark, on(2), on(1), repeat=calls_in_a_turn(on(2), least_calls))
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info.update(density=density, bar=1.8, note="two threads against one")
    assert result.reaches(1.8), f"{result.ratio:.2f} times faster on two threads, expected 1.8"


def check_share(benchmark: Any, work: Callable[[], object], products: int, density: float, bar: float) -> None:
    """``products`` multiply-adds of ``work`` a second, as a share of what a square product makes."""
    square, product = torch.randn(512, 512), torch.empty(512, 512)  # without pages that come and go at every call
    calls = calls_in_a_turn(work, LEAST_CALLS)
    result = alternate(benchmark, work, lambda: torch.mm(square, square, out=product), rounds=31, repeat=calls)
    share = (products / result.ours) / (512**3 / result.rival)
    # The ratio that the interval belongs to is that of the times: its upper end, as a share.
    highest = share * result.high / result.ratio
    benchmark.extra_info.update(
        density=density, share=share, note=f"{100 * share:.0f} % of the sgemm rate (bar {100 * bar:.0f} %)"
    )
    assert highest >= bar, f"{100 * share:.0f} % of the sgemm rate, expected {100 * bar:.0f} %"


@pytest.mark.parametrize("density", BARS)
@pytest.mark.parametrize("features", LAYERS, ids=str)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_forward_as_a_share_of_sgemm(benchmark: Any, threads: int, features: tuple[int, int], density: float) -> None:
    in_features, out_features = features
    mask = torch.rand(out_features, in_features) < density
    sparse = SparseLinear(in_features, out_features, mask=mask).requires_grad_(False)
    inputs = torch.randn(64, in_features)
    bar = BARS[density] - (0.05 if in_features > 1024 else 0.0)
    check_share(benchmark, lambda: sparse(inputs), sparse.survivors * 64, density, bar)


@pytest.mark.parametrize("density", BACKWARD_BARS)
@pytest.mark.parametrize("features", LAYERS, ids=str)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_backward_as_a_share_of_sgemm(benchmark: Any, threads: int, features: tuple[int, int], density: float) -> None:
    """Both gradients in one call, as autograd calls it."""
    in_features, out_features = features
    sparse = SparseLinear(in_features, out_features, mask=torch.rand(out_features, in_features) < density)
    arguments = (torch.randn(64, out_features), torch.randn(64, in_features), sparse.values.detach(), *sparse.pattern)
    wanted = [True, True, False]  # of input, values and bias
    check_share(
        benchmark,
        lambda: torch.ops.lth_fast.sparse_linear_backward(*arguments, wanted),
        2 * sparse.survivors * 64,
        density,
        BACKWARD_BARS[density],
    )
