"""Layers in the form ``convert`` chooses against dense layers and every known rival, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from .alternation import calls_in_a_turn, check_bars, take_turns
from .layers import exact_mask, ours, rivals, training_pass

# SparseLab's way to find the survivors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
AS_DENSE = {1.0: 0.97, 0.5: 0.97}
# Layer: (in_features, out_features, batch, whether the input needs a gradient) and, by density, times faster than ...
LINEAR = {
    "4608_to_512_batch_64": (
        (4608, 512, 64, True),
        {**AS_DENSE, 0.2: 2.3, 0.1: 4.5, 0.05: 7.5, 0.01: 13.0},  # dense
        {1.0: 1.5, 0.5: 1.5, 0.2: 4.0, 0.1: 8.0, 0.05: 13.0, 0.01: 22.0},  # torch.nn.utils.prune
    ),
    "1024_to_1024_batch_128": ((1024, 1024, 128, True), {**AS_DENSE, 0.2: 2.2, 0.1: 4.0, 0.05: 7.0, 0.01: 13.0}, {}),
    "4096_to_4096_batch_256": ((4096, 4096, 256, True), {**AS_DENSE, 0.2: 2.2, 0.1: 4.0, 0.05: 7.0, 0.01: 13.0}, {}),
    "784_to_300_batch_60_first": ((784, 300, 60, False), {0.2: 2.2, 0.1: 3.6, 0.05: 5.2}, {}),
}
# Channels → width of the square maps.
CONVOLUTIONS = {64: 32, 128: 16, 256: 8, 512: 4}
CONVOLUTION_BARS = {**AS_DENSE, 0.2: 1.7, 0.1: 2.8, 0.05: 4.5}
PEERS_FROM = (0.01, 0.2)
LEAST_CALLS = 5


def meets_peers(density: float) -> bool:
    lowest, highest = PEERS_FROM
    return lowest <= density <= highest


def by_default(channels: int, density: float) -> bool:
    """Whether a convolution is not one of the long benchmarks: all of one kind, of another where it is to be sparse."""
    return channels == 128 or (channels == 512 and density < 0.5)


def peers(density: float, bar: float) -> dict[str, float]:
    return {"SparseProp": bar, "SparseLab": bar} if meets_peers(density) else {}


def compare(
    benchmark: Any, layer: nn.Module, inputs: torch.Tensor, density: float, least_calls: int, with_peers: bool
) -> Any:
    mask = exact_mask(layer.weight.shape, density)  # type: ignore[arg-type]
    chosen, form = ours(layer, mask, inputs)
    others = rivals(layer, mask, inputs, with_peers)
    gradient = torch.randn_like(layer(inputs))
    benchmark.extra_info.update(density=density, form=form, note=form)
    work = training_pass(chosen, inputs, gradient)
    return take_turns(
        benchmark,
        work,
        {name: training_pass(other, inputs, gradient) for name, other in others.items()},
        repeat=calls_in_a_turn(work, least_calls),
        warm_up=least_calls > 1,  # where the median of long turns does not hang on the first one
    )


@pytest.mark.usefixtures("denormals_flushed")
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name.startswith("4096") else ()) for name in LINEAR]
)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_linear(benchmark: Any, threads: int, name: str, density: float) -> None:
    (in_features, out_features, batch, input_grad), dense, stock = LINEAR[name]
    inputs = torch.randn(batch, in_features, requires_grad=input_grad)
    calls = 1 if name.startswith("4096") else LEAST_CALLS
    layer = nn.Linear(in_features, out_features)
    results = compare(benchmark, layer, inputs, density, calls, meets_peers(density))
    benchmark.extra_info.update(threads=threads, layer=name)
    bars = peers(density, 3.0)
    for rival, by_density in (("dense", dense), ("torch.nn.utils.prune", stock)):
        if density in by_density:
            bars[rival] = by_density[density]
    check_bars(benchmark, results, bars)


@pytest.mark.usefixtures("denormals_flushed")
@pytest.mark.parametrize(
    ("channels", "density"),
    [
        pytest.param(channels, density, marks=() if by_default(channels, density) else pytest.mark.long)
        for channels in CONVOLUTIONS
        for density in CONVOLUTION_BARS
    ],
)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_convolution_3x3(benchmark: Any, threads: int, channels: int, density: float) -> None:
    width = CONVOLUTIONS[channels]
    inputs = torch.randn(64, channels, width, width, requires_grad=True)
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    results = compare(benchmark, layer, inputs, density, 1, meets_peers(density))
    benchmark.extra_info.update(threads=threads, layer=f"{channels} channels of {width} x {width}, batch 64")
    bars = {**peers(density, 2.0), "dense": CONVOLUTION_BARS[density]}
    if density >= 0.5:
        bars["torch.nn.utils.prune"] = 1.0
    check_bars(benchmark, results, bars)


@pytest.mark.long
@pytest.mark.usefixtures("denormals_flushed")
@pytest.mark.parametrize("density", [0.5])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_linear_beside_peers_where_they_have_no_bar(benchmark: Any, threads: int, name: str, density: float) -> None:
    in_features, out_features, batch, input_grad = LINEAR[name][0]
    inputs = torch.randn(batch, in_features, requires_grad=input_grad)
    results = compare(benchmark, nn.Linear(in_features, out_features), inputs, density, 1, with_peers=True)
    benchmark.extra_info.update(threads=threads, layer=name)
    assert results["dense"].ours > 0


@pytest.mark.long
@pytest.mark.usefixtures("denormals_flushed")
@pytest.mark.parametrize("density", [0.5])
@pytest.mark.parametrize("channels", CONVOLUTIONS)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_convolution_beside_peers_where_they_have_no_bar(
    benchmark: Any, threads: int, channels: int, density: float
) -> None:
    width = CONVOLUTIONS[channels]
    inputs = torch.randn(64, channels, width, width, requires_grad=True)
    results = compare(benchmark, nn.Conv2d(channels, channels, 3, padding=1), inputs, density, 1, with_peers=True)
    benchmark.extra_info.update(threads=threads, layer=f"{channels} channels of {width} x {width}, batch 64")
    assert results["dense"].ours > 0
