"""SparseLinear against nn.Linear and torch.nn.utils.prune, forward and backward, and against the sgemm rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.alternation import alternate
from lth_fast.nn import SparseLinear

DENSITIES = [0.2, 0.1, 0.05, 0.01]
# Layer (in_features, out_features, batch, whether the input needs a gradient) → times faster than dense, per density.
LAYERS = {
    "4608x512_batch64": ((4608, 512, 64, True), [2.3, 4.5, 7.5, 13.0]),
    "1024x1024_batch128": ((1024, 1024, 128, True), [2.2, 4.0, 7.0, 13.0]),
    "4096x4096_batch256": ((4096, 4096, 256, True), [2.2, 4.0, 7.0, 13.0]),
    "784x300_batch60_first_layer": ((784, 300, 60, False), [2.2, 3.6, 5.2, 5.2]),
}


@pytest.fixture(autouse=True)
def denormals_flushed_on_both_sides() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def training_pass(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Forward and backward; gradients are dropped, as an optimizer's zero_grad does."""

    def work() -> None:
        layer(inputs).backward(gradient)
        inputs.grad = None
        layer.zero_grad()

    return work


@pytest.mark.parametrize("rival", ["dense", "stock_prune"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward(benchmark: Any, threads: int, name: str, density: float, rival: str) -> None:
    (in_features, out_features, batch, input_gradient), bars = LAYERS[name]
    dense = nn.Linear(in_features, out_features)
    mask = torch.rand(out_features, in_features) < density
    sparse = SparseLinear.from_dense(dense, mask)
    if rival == "stock_prune":
        prune.custom_from_mask(dense, "weight", mask)
    inputs = torch.randn(batch, in_features, requires_grad=input_gradient)
    gradient = torch.randn(batch, out_features)
    result = alternate(
        benchmark,
        training_pass(sparse, inputs, gradient),
        training_pass(dense, inputs, gradient),
        rounds=11 if batch > 200 else 31,
        repeat=10 if in_features < 1024 else 1,
    )
    benchmark.extra_info.update(threads=threads, density=density)
    if rival == "dense" and threads == 1:
        benchmark.extra_info["bar"] = bars[DENSITIES.index(density)]
    assert result.ours > 0


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
@pytest.mark.parametrize("features", [(784, 300), (1024, 1024), (4608, 512)], ids=str)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_forward_as_a_share_of_sgemm(benchmark: Any, threads: int, features: tuple[int, int], density: float) -> None:
    in_features, out_features = features
    mask = torch.rand(out_features, in_features) < density
    sparse = SparseLinear(in_features, out_features, mask=mask).requires_grad_(False)
    inputs, square = torch.randn(64, in_features), torch.randn(512, 512)
    result = alternate(benchmark, lambda: sparse(inputs), lambda: square @ square, rounds=31, repeat=5)
    share = (sparse.survivors * 64 / result.ours) / (512**3 / result.rival)
    benchmark.extra_info.update(density=density, share=share, note=f"{100 * share:.0f} % of the sgemm rate")
    assert share > 0
