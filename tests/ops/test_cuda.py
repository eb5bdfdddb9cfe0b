"""What only a CUDA device shows: agreement with the CPU bit for bit, graphs, streams, and torch's sparse products."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lth_fast._build_info import CUDA_ARCHITECTURES
from lth_fast.ops import (
    magnitude_threshold,
    masked_apply,
    masked_apply_,
    pack_mask,
    prune_by_magnitude,
    sparse_conv2d,
    sparse_conv2d_pattern,
    sparse_linear,
    sparse_pattern,
    unpack_mask,
)
from lth_fast.ops.adam_step import adam_step_
from lth_fast.ops.magnitude_threshold import MAGNITUDE_DTYPES
from lth_fast.ops.sparse_linear import from_dense, to_dense
from lth_fast.ops.sparse_pattern import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not CUDA_ARCHITECTURES, reason="this build has no CUDA kernels"),
]

Distance = Callable[[Tensor, Tensor], float]


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """``work`` as a graph, after one run outside of it."""
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        pytest.skip("without torch's memory cache, as under compute-sanitizer, nothing can be captured")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@pytest.mark.parametrize("dtype", MAGNITUDE_DTYPES, ids=str)
@pytest.mark.parametrize("distinct", [2, 100_000])
def test_threshold_and_masks_are_those_of_the_cpu_bit_for_bit(dtype: torch.dtype, distinct: int) -> None:
    weights = [
        (torch.randint(-distinct, distinct + 1, shape) / distinct).to(dtype)
        for shape in [(300, 784), (0,), (100, 300), (64, 32, 3, 3), (1_000_003,)]
    ]
    weights[3] = weights[3].to(memory_format=torch.channels_last)
    masks = [torch.rand(weight.shape) < 0.6 for weight in weights]
    survivors = sum(int(mask.sum()) for mask in masks)
    on_device = [weight.cuda() for weight in weights], [mask.cuda() for mask in masks]
    for k in (0, 1, survivors // 5, survivors // 2, survivors):
        found = magnitude_threshold(on_device[0], k, on_device[1])
        assert [value.item() for value in found] == [value.item() for value in magnitude_threshold(weights, k, masks)]
        new_masks = prune_by_magnitude(on_device[0], k, on_device[1])
        for new_mask, expected in zip(new_masks, prune_by_magnitude(weights, k, masks), strict=True):
            assert torch.equal(new_mask.cpu(), expected)


def test_a_replayed_prune_step_follows_the_weights() -> None:
    weights = [torch.randn(300, 100, device="cuda"), torch.randn(70_000, device="cuda")]
    masks = [torch.ones(weight.shape, dtype=torch.bool, device="cuda") for weight in weights]

    def prune() -> None:
        for mask, new_mask in zip(masks, prune_by_magnitude(weights, 10_000, masks), strict=True):
            mask.copy_(new_mask)

    graph = captured(prune)
    for level in range(2, 5):
        for weight in weights:
            weight.normal_()
        expected = prune_by_magnitude([weight.cpu() for weight in weights], 10_000, [mask.cpu() for mask in masks])
        graph.replay()
        assert sum(int((~mask).sum()) for mask in masks) == level * 10_000
        assert all(torch.equal(mask.cpu(), other) for mask, other in zip(masks, expected, strict=True))


def test_a_replay_on_weights_with_nan_prunes_nothing_and_gives_a_threshold_of_nan() -> None:
    weight = torch.randn(50_000, device="cuda")
    results: list[Tensor] = []

    def prune() -> None:
        results[:] = [*prune_by_magnitude([weight], 10_000), magnitude_threshold([weight], 10_000).threshold]

    graph = captured(prune)
    weight[12_345] = torch.nan
    graph.replay()
    new_mask, threshold = results
    assert new_mask.all()
    assert threshold.isnan()


def test_a_replayed_sparse_convolution_follows_its_values() -> None:
    mask = torch.rand(8, 4, 3, 3, device="cuda") < 0.3
    pattern, inputs = sparse_conv2d_pattern(mask), torch.randn(5, 4, 9, 9, device="cuda", requires_grad=True)
    values = torch.zeros(int(mask.sum()), device="cuda", requires_grad=True)
    results: list[Tensor] = []

    def forward_and_backward() -> None:
        out = sparse_conv2d(inputs, values, None, pattern, (3, 3), padding=(1, 1))
        results[:] = [out, *torch.autograd.grad(out.square().sum(), (inputs, values))]

    graph = captured(forward_and_backward)
    with torch.no_grad():
        values.normal_()
    graph.replay()
    replayed = [result.clone() for result in results]
    forward_and_backward()
    for found, expected in zip(replayed, results, strict=True):
        assert expected.any()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_masks_and_the_sparse_layer_never_wait_for_the_device() -> None:
    mask = torch.rand(300, 784, device="cuda") < 0.1
    pattern = sparse_pattern(mask)
    values = torch.randn(pattern.columns.shape, device="cuda", requires_grad=True)
    weight, inputs = torch.randn(300, 784, device="cuda"), torch.randn(64, 784, device="cuda", requires_grad=True)
    with waiting_is_an_error():
        bits = pack_mask(mask)
        masked_apply_(masked_apply(weight, bits), bits)
        unpack_mask(bits, (300, 784))
        sparse_linear(inputs, values, None, pattern).sum().backward()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("density", [0.01, 0.3])
@pytest.mark.parametrize("samples", [1, 64, 500])
def test_the_sparse_layer_agrees_with_cusparse(density: float, samples: int, distance: Distance) -> None:
    mask = torch.rand(700, 900, device="cuda") < density
    pattern = sparse_pattern(mask)
    values, inputs = torch.randn(int(mask.sum()), device="cuda"), torch.randn(samples, 900, device="cuda")
    gradient = torch.randn(samples, 700, device="cuda")
    weight = to_dense(values, pattern).to_sparse_csr()
    assert distance(sparse_linear(inputs, values, None, pattern), (weight @ inputs.t()).t()) <= 1e-6
    transposed = to_dense(values, pattern).t().to_sparse_csr()
    grad_inputs, grad_values, _ = torch.ops.lth_fast.sparse_linear_backward(
        gradient, inputs, values, *pattern, (True, True, False)
    )
    assert distance(grad_inputs, (transposed @ gradient.t()).t()) <= 1e-6
    zeros = torch.zeros_like(weight.values())
    places = torch.sparse_csr_tensor(weight.crow_indices(), weight.col_indices(), zeros, weight.shape)
    expected = torch.sparse.sampled_addmm(places, gradient.t().contiguous(), inputs, beta=0.0).to_dense()
    assert distance(to_dense(grad_values, pattern), expected) <= 1e-6


def test_a_pattern_made_on_the_cpu_is_that_made_on_the_device() -> None:
    mask = torch.rand(300, 4608) < 0.2
    made, here = sparse_pattern(mask), sparse_pattern(mask.cuda())
    assert all(torch.equal(moved.cuda(), part) for moved, part in zip(made, here, strict=True))


def test_the_bits_do_not_depend_on_the_panels() -> None:
    mask, weight = torch.rand(300, 4608, device="cuda") < 0.2, torch.randn(300, 4608, device="cuda")
    several, one, inputs = sparse_pattern(mask), reference(mask, panels=(1, 1)), torch.randn(64, 4608, device="cuda")
    assert several.row_order.shape[0] > one.row_order.shape[0] == 1
    outputs = [sparse_linear(inputs, from_dense(weight, pattern), None, pattern) for pattern in (several, one)]
    assert torch.equal(*outputs)


def test_work_goes_to_the_current_stream() -> None:
    weight, other = torch.randn(1 << 24, device="cuda"), torch.randn(4096, 4096, device="cuda")
    bits = pack_mask(torch.rand(weight.shape, device="cuda") < 0.5)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):  # keeps the stream busy: a kernel on another one would be too early
            other = (other @ other).tanh()
        weight.fill_(1.0)
        masked_apply_(weight, bits)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(weight.bool(), unpack_mask(bits, weight.shape))


def test_a_replayed_adam_step_counts_its_steps_and_reads_the_learning_rate_anew() -> None:
    weight, gradient = torch.randn(300, 100, device="cuda"), torch.randn(300, 100, device="cuda")
    mask = torch.rand(300, 100, device="cuda") < 0.5
    bits, step = pack_mask(mask), torch.zeros((), device="cuda")
    moments, lr = [torch.zeros_like(weight) for _ in range(2)], torch.tensor(0.0, device="cuda")
    leaf = torch.nn.Parameter(masked_apply(weight, bits))
    stock = torch.optim.Adam([leaf], lr=0.01, foreach=False)

    def take_step() -> None:
        settings = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        flags = {"decoupled_weight_decay": False, "maximize": False}
        adam_step_(
            [weight],
            [gradient],
            [moments[0]],
            [moments[1]],
            [],
            [step],
            [bits],
            lr=7.0,
            lr_tensor=lr,
            **settings,
            **flags,
        )

    graph = captured(take_step)  # which took one step, of size 0
    step.zero_()
    for moment in moments:
        moment.zero_()
    for rate in (0.01, 0.03):
        stock.param_groups[0]["lr"] = rate
        leaf.grad = masked_apply(gradient, bits)
        stock.step()
        lr.fill_(rate)
        graph.replay()
    assert step.item() == 2
    assert torch.allclose(weight, leaf, rtol=1e-5, atol=1e-7)
    assert not weight[~mask].any()
