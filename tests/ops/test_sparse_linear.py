from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from lth_fast.ops import SparsePattern, sparse_linear, sparse_pattern
from lth_fast.ops.sparse_linear import _backward, _forward, from_dense, reference, to_dense
from lth_fast.ops.sparse_pattern import reference as pattern_reference

Distance = Callable[[Tensor, Tensor], float]
# Features below, at and above blocks of eight, one and several panels, more rows and columns than one task takes.
FEATURES = [(1, 1), (16, 8), (7, 3), (33, 21), (784, 300), (1300, 40), (40, 1300), (20, 20000), (5000, 20), (300, 130)]
# Which of the gradients of input, values and bias.
WANTED = list(itertools.product([False, True], repeat=3))
# Batches that fill a whole, a half and a quarter tile, several tiles, and a rest.
BATCHES = [(), (1,), (9,), (17,), (32,), (64,), (3, 43), (200,)]


def random_layer(
    in_features: int, out_features: int, density: float = 0.3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, SparsePattern]:
    """Values, bias and pattern."""
    mask = torch.rand(out_features, in_features) < density
    values, bias = torch.randn(int(mask.sum()), dtype=dtype), torch.randn(out_features, dtype=dtype)
    return values, bias, sparse_pattern(mask)


def values_grad(gradient: Tensor, inputs: Tensor, pattern: Sequence[Tensor]) -> Tensor:
    return torch.ops.lth_fast.sparse_linear_backward(gradient, inputs, gradient, *pattern, (False, True, False))[1]


def as_leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def assert_agrees_with_reference(
    inputs: Tensor, values: Tensor, bias: Tensor, pattern: SparsePattern, distance: Distance
) -> None:
    """Output and all gradients, in the dtype of ``inputs``, against the reference in float64."""
    ours, expected = as_leaves(inputs, values, bias), as_leaves(inputs, values, bias, dtype=torch.float64)
    out, like = sparse_linear(*ours, pattern), reference(*expected, pattern)
    assert distance(out, like) <= 1e-6
    gradient = torch.randn(out.shape, dtype=out.dtype)
    out.backward(gradient)
    like.backward(gradient.double())
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_output_and_gradients_are_those_of_the_reference(
    features: tuple[int, int], batch: tuple[int, ...], distance: Distance
) -> None:
    assert_agrees_with_reference(torch.randn(*batch, features[0]), *random_layer(*features), distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("density", [0.0, 0.002, 0.05, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_density_and_both_dtypes_agree(density: float, dtype: torch.dtype, distance: Distance) -> None:
    inputs = torch.randn(70, 700, dtype=dtype)
    assert_agrees_with_reference(inputs, *random_layer(700, 90, density, dtype), distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [37, 64, 150])
@pytest.mark.parametrize("features", [(1024, 40), (40, 1024), (1000, 40), (40, 1000)], ids=str)
def test_samples_that_are_pages_apart_agree_with_and_without_relu(
    features: tuple[int, int], batch: int, distance: Distance
) -> None:
    """Lines of the cache that push each other out are written in an order of their own."""
    values, bias, pattern = random_layer(*features)
    inputs = torch.randn(batch, features[0])
    assert_agrees_with_reference(inputs, values, bias, pattern, distance)
    rectified = sparse_linear(inputs, values, bias, pattern, relu=True)
    assert torch.equal(rectified, sparse_linear(inputs, values, bias, pattern).relu())


# In many slices of rows or columns, through which all tiles or, of few survivors, all values pass.
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("density", [0.02, 0.6])
@pytest.mark.parametrize("features", [(9000, 40), (40, 9000)], ids=str)
def test_large_layers_agree_over_several_tiles(features: tuple[int, int], density: float, distance: Distance) -> None:
    assert_agrees_with_reference(torch.randn(200, features[0]), *random_layer(*features, density), distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", [(32769, 3), (3, 32769)], ids=str)
def test_layers_beyond_16_bit_numbers_agree(features: tuple[int, int], distance: Distance) -> None:
    assert_agrees_with_reference(torch.randn(5, features[0]), *random_layer(*features, 0.01), distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", [(0, 3), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 0, 3)], ids=str)
def test_empty_layers_and_batches_give_what_a_dense_layer_gives(
    features: tuple[int, int], batch: tuple[int, ...], distance: Distance
) -> None:
    assert_agrees_with_reference(torch.randn(*batch, features[0]), *random_layer(*features), distance)
    assert_agrees_with_reference(torch.randn(0, 12), *random_layer(12, 5), distance)


def test_error_against_float64_is_no_larger_than_that_of_the_dense_layer(distance: Distance) -> None:
    values, bias, pattern = random_layer(2048, 256, 0.2)
    inputs = torch.randn(64, 2048)
    exact = reference(inputs.double(), values.double(), bias.double(), pattern)
    dense = distance(reference(inputs, values, bias, pattern), exact)
    assert distance(sparse_linear(inputs, values, bias, pattern), exact) <= max(1e-6, 1.5 * dense)


@pytest.mark.parametrize("wanted", range(3), ids=["input", "values", "bias"])
def test_a_single_gradient_can_be_asked_for(wanted: int, distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    tensors = [torch.randn(5, 33), values, bias]
    expected = as_leaves(*tensors, dtype=torch.float64)
    reference(*expected, pattern).square().sum().backward()
    tensors[wanted].requires_grad_()
    sparse_linear(*tensors, pattern).square().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]
    found, like = tensors[wanted].grad, expected[wanted].grad
    assert found is not None
    assert like is not None
    assert distance(found, like) <= 1e-6


class Recorder(TorchDispatchMode):
    """The arguments of the operators that were called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[str, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[func.name()] = args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_a_gradient_that_nobody_asks_for_is_not_computed(wanted: tuple[bool, bool, bool]) -> None:
    values, bias, pattern = random_layer(33, 20)
    tensors = (torch.randn(5, 33), values, bias)
    for tensor, asked_for in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(asked_for)
    with Recorder() as recorder:
        out = sparse_linear(*tensors, pattern)
        if any(wanted):
            out.sum().backward()
    if any(wanted):
        assert recorder.called["lth_fast::sparse_linear_backward"][-1] == list(wanted)
    else:
        assert "lth_fast::sparse_linear_backward" not in recorder.called


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_gradients_computed_together_are_those_computed_alone(
    wanted: tuple[bool, bool, bool], distance: Distance
) -> None:
    values, bias, pattern = random_layer(330, 200)
    inputs, gradient = torch.randn(2, 67, 330), torch.randn(2, 67, 200)
    expected = as_leaves(inputs, values, bias, dtype=torch.float64)
    reference(*expected, pattern).backward(gradient.double())
    backward = torch.ops.lth_fast.sparse_linear_backward
    together = backward(gradient, inputs, values, *pattern, wanted)
    for i, (found, like) in enumerate(zip(together, expected, strict=True)):
        if wanted[i]:
            alone = backward(gradient, inputs, values, *pattern, [i == j for j in range(3)])[i]
            assert torch.equal(found, alone)
            assert like.grad is not None
            assert distance(found, like.grad) <= 1e-6
        else:
            assert found.numel() == 0


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [(0,), (2, 0)], ids=str)
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_gradients_of_no_samples_are_zero(wanted: tuple[bool, bool, bool], batch: tuple[int, ...]) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs, gradient = torch.randn(*batch, 33), torch.randn(*batch, 20)
    found = torch.ops.lth_fast.sparse_linear_backward(gradient, inputs, values, *pattern, wanted)
    for one, like, asked_for in zip(found, (inputs, values, bias), wanted, strict=True):
        assert torch.equal(one, torch.zeros_like(like) if asked_for else torch.empty(0))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("features", [(3, 5), (40, 17)], ids=str)
def test_the_gradient_of_the_values_stays_exact_over_many_samples(
    features: tuple[int, int], distance: Distance
) -> None:
    values, _, pattern = random_layer(*features, 0.5)
    gradient, inputs = torch.rand(100_003, features[1]), torch.rand(100_003, features[0])
    found = values_grad(gradient, inputs, pattern)
    assert distance(found, from_dense(gradient.double().t() @ inputs.double(), pattern)) <= 3e-7
    assert found.shape == values.shape


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", [1, 15, 64, 100])
def test_the_gradient_of_a_bias_stays_exact_over_many_samples(features: int, distance: Distance) -> None:
    values, _, pattern = random_layer(3, features)
    gradient = torch.rand(100_003, features)
    _, _, found = torch.ops.lth_fast.sparse_linear_backward(
        gradient, torch.randn(100_003, 3), values, *pattern, (False, True, True)
    )
    assert distance(found, gradient.double().sum(0)) <= 1e-6


def test_without_a_bias_the_output_is_the_product_alone(distance: Distance) -> None:
    values, _, pattern = random_layer(33, 20)
    inputs = torch.randn(5, 33)
    found = sparse_linear(inputs, values, None, pattern)
    assert distance(found, inputs.double() @ to_dense(values, pattern).double().t()) <= 1e-6


@pytest.mark.usefixtures("kernels")
def test_inputs_and_gradients_may_lie_in_memory_in_any_order(distance: Distance) -> None:
    values, bias, pattern = random_layer(7, 3)
    inputs = torch.randn(7, 4, 5).permute(2, 1, 0)
    for grad_output in (torch.randn(3, 4, 5).permute(2, 1, 0), torch.randn(()).expand(5, 4, 3)):
        single, double = as_leaves(values, bias), as_leaves(values, bias, dtype=torch.float64)
        out, like = sparse_linear(inputs, *single, pattern), reference(inputs.double(), *double, pattern)
        assert distance(out, like) <= 1e-6
        out.backward(grad_output)
        like.backward(grad_output.double())
        for tensor, expected in zip(single, double, strict=True):
            assert tensor.grad is not None
            assert expected.grad is not None
            assert distance(tensor.grad, expected.grad) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [5, 70], ids=["one tile", "several tiles"])
def test_values_and_biases_may_be_columns_of_a_table(batch: int, distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(batch, 33)
    columns = [torch.stack([tensor, torch.zeros_like(tensor)], 1)[:, 0] for tensor in (values, bias)]
    ours = [inputs.clone().requires_grad_(), *(column.requires_grad_() for column in columns)]
    expected = as_leaves(inputs, values, bias, dtype=torch.float64)
    out, like = sparse_linear(*ours, pattern), reference(*expected, pattern)
    assert distance(out, like) <= 1e-6
    out.square().sum().backward()
    like.square().sum().backward()
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= 1e-6


def test_rows_of_a_larger_tensor_are_read_where_they_are(distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(9, 100)[:, 40:73]
    assert_agrees_with_reference(inputs, values, bias, pattern, distance)
    assert distance(sparse_linear(inputs, values, bias, pattern), reference(inputs, values, bias, pattern)) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [(), (2,), (2, 2)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_first_and_second_derivatives_agree_with_finite_differences(batch: tuple[int, ...], with_bias: bool) -> None:
    values, bias, pattern = random_layer(5, 4, 0.5, torch.float64)
    tensors = as_leaves(torch.randn(*batch, 5, dtype=torch.float64), values, *([bias] if with_bias else []))

    def sparse(inputs: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        return sparse_linear(inputs, values, bias, pattern).sin()

    assert torch.autograd.gradcheck(sparse, tensors)
    assert torch.autograd.gradgradcheck(sparse, tensors)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [9, 70])
def test_with_relu_output_and_gradients_are_those_of_a_relu_behind_it(batch: int, distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    tensors = (torch.randn(batch, 33), values, bias)
    ours, expected = as_leaves(*tensors), as_leaves(*tensors, dtype=torch.float64)
    out, like = sparse_linear(*ours, pattern, relu=True), reference(*expected, pattern, relu=True)
    assert out.min() == 0.0
    assert distance(out, like) <= 1e-6
    gradient = torch.randn(out.shape)
    out.backward(gradient)
    like.backward(gradient.double())
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= 1e-6


def test_derivatives_with_relu_agree_with_finite_differences() -> None:
    values, bias, pattern = random_layer(5, 4, 0.5, torch.float64)

    def sparse(*leaves: Tensor) -> Tensor:
        return sparse_linear(*leaves, pattern, relu=True).sin()

    leaves = as_leaves(torch.randn(3, 5, dtype=torch.float64), values, bias)
    assert torch.autograd.gradcheck(sparse, leaves)
    assert torch.autograd.gradgradcheck(sparse, leaves)


@pytest.mark.usefixtures("kernels")
def test_relu_lets_nan_through_as_torchs_does() -> None:
    pattern = sparse_pattern(torch.ones(25, 1, dtype=torch.bool))  # sixteen features, eight and a rest
    assert sparse_linear(torch.full((9, 1), float("nan")), torch.ones(25), None, pattern, relu=True).isnan().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_leaves_the_other_samples_alone(value: float, distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(70, 33)
    expected = reference(inputs.double(), values.double(), bias.double(), pattern)
    inputs[3] = value
    found = sparse_linear(inputs, values, bias, pattern)
    others = torch.arange(70) != 3
    assert distance(found[others], expected[others]) <= 1e-6
    assert not found[3][to_dense(values, pattern).any(1)].isfinite().any()


@pytest.mark.usefixtures("isa")
def test_denormals_are_flushed_and_the_callers_setting_is_left_as_it_was() -> None:
    pattern = sparse_pattern(torch.ones(4, 4, dtype=torch.bool))
    tiny = torch.full((16,), 1e-39)
    leaves = as_leaves(torch.ones(2, 4), torch.ones(16), torch.zeros(4))
    sparse_linear(*leaves, pattern).backward(tiny[:8].view(2, 4))
    for result in (sparse_linear(torch.ones(2, 4), tiny, None, pattern), *(leaf.grad for leaf in leaves)):
        assert result.view(torch.int32).unique().tolist() == [0]
    assert (tiny * 1).view(torch.int32).unique().tolist() == tiny.view(torch.int32).unique().tolist() != [0]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", [(1500, 700), (2500, 300), (30, 20000)], ids=str)
@pytest.mark.parametrize("batch", [60, 100])
def test_the_bits_do_not_depend_on_the_number_of_threads(
    features: tuple[int, int], batch: int, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    """Threads share the rows, the samples and, of a wide layer, the panels."""
    in_features, out_features = features
    values, bias, pattern = random_layer(*features, 0.1)
    inputs, gradient = torch.randn(batch, in_features), torch.randn(batch, out_features)

    def everything() -> Tensor:
        leaves = as_leaves(inputs, values, bias)
        out = sparse_linear(*leaves, pattern)
        out.backward(gradient)
        return torch.cat([out.flatten(), *(leaf.grad.flatten() for leaf in leaves if leaf.grad is not None)])

    alone = on_threads(1, everything)
    for threads in (2, 3, 4):
        assert torch.equal(alone, on_threads(threads, everything))


# How the kernels come to the values in column order: one tile reads them where they stand, several tiles a copy. Those
# of the first layer fill no more than a second-level cache, those of the others many.
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", [(300, 200), (3000, 500), (500, 3000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sample_has_the_same_bits_in_one_tile_and_beside_another(
    features: tuple[int, int], dtype: torch.dtype, distance: Distance
) -> None:
    values, bias, pattern = random_layer(*features, density=0.8, dtype=dtype)
    inputs, gradients = torch.randn(128, features[0], dtype=dtype), torch.randn(128, features[1], dtype=dtype)

    def output_and_gradient(samples: slice) -> list[Tensor]:
        leaf = inputs[samples].detach().requires_grad_()
        out = sparse_linear(leaf, values, bias, pattern)
        return [out, *torch.autograd.grad(out, leaf, gradients[samples])]

    of_one_tile, of_two = output_and_gradient(slice(64)), output_and_gradient(slice(128))
    weight = to_dense(values, pattern).double()
    assert distance(of_one_tile[1], gradients[:64].double() @ weight) <= 1e-6
    for one, two in zip(of_one_tile, of_two, strict=True):
        assert torch.equal(one, two[:64])


@pytest.mark.usefixtures("isa")
def test_zeros_have_one_sign_on_any_number_of_threads(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
) -> None:
    """Of an input that is always 0, under gradients of one sign."""
    values, _, pattern = random_layer(60, 512, 0.2)
    inputs, gradient = torch.zeros(512, 60), -torch.ones(512, 512)

    def negative() -> Tensor:
        (leaf,) = as_leaves(values)
        return torch.autograd.grad(sparse_linear(inputs, leaf, None, pattern), leaf, gradient)[0].signbit()

    alone = on_threads(1, negative)
    assert alone.any()
    for threads in (2, 3, 4):
        assert torch.equal(alone, on_threads(threads, negative))


@pytest.mark.parametrize("in_features", [8, 0])
def test_of_frozen_values_the_bits_of_the_gradient_of_the_bias_do_not_depend_on_the_number_of_threads(
    in_features: int, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    """Torch's own sum to a single number is one per thread, added up in the end."""
    values, bias, pattern = random_layer(in_features, 1, 1.0)
    inputs, gradient = torch.randn(70_000, in_features), torch.randn(70_000, 1)

    def of_bias() -> Tensor:
        (leaf,) = as_leaves(bias)
        return torch.autograd.grad(sparse_linear(inputs, values, leaf, pattern), leaf, gradient)[0]

    alone = on_threads(1, of_bias)
    assert (alone.double() - gradient.double().sum(0)).abs() <= 1e-3
    for threads in (2, 3, 4):
        assert torch.equal(alone, on_threads(threads, of_bias))


@pytest.mark.usefixtures("kernels")
def test_one_panel_and_several_agree(distance: Distance) -> None:
    mask = torch.rand(300, 1500) < 0.1
    weight, bias, inputs = torch.randn(300, 1500), torch.randn(300), torch.randn(100, 1500)
    several, one = sparse_pattern(mask), pattern_reference(mask, panels=(1, 1))
    assert several.row_order.shape[0] > one.row_order.shape[0] == 1
    for pattern in (several, one):
        assert_agrees_with_reference(inputs, from_dense(weight, pattern), bias, pattern, distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("in_features", "out_features"), [(9000, 30), (30, 9000)])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_long_sums_are_as_exact_as_those_of_a_dense_layer(
    in_features: int, out_features: int, density: float, distance: Distance
) -> None:
    mask = torch.rand(out_features, in_features) < density
    pattern, weight = sparse_pattern(mask), torch.randn(out_features, in_features) * mask
    inputs, gradient = torch.randn(64, in_features), torch.randn(64, out_features)

    def output_and_input_grad(layer: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        (leaf,) = as_leaves(inputs)
        out = layer(leaf)
        out.backward(gradient.to(out.dtype))
        assert leaf.grad is not None
        return out, leaf.grad

    values = from_dense(weight, pattern)
    ours = output_and_input_grad(lambda inputs: sparse_linear(inputs, values, None, pattern), inputs)
    dense = output_and_input_grad(lambda inputs: nn.functional.linear(inputs, weight), inputs)
    exact = output_and_input_grad(lambda inputs: nn.functional.linear(inputs, weight.double()), inputs.double())
    for our, stock, expected in zip(ours, dense, exact, strict=True):
        assert distance(our, expected) <= 1.5 * distance(stock, expected)


def test_under_autocast_the_layer_computes_in_float32(distance: Distance) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(5, 33)
    (leaf,) = as_leaves(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sparse_linear(inputs.bfloat16(), leaf, bias, pattern)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert distance(out, reference(inputs.bfloat16().float(), values, bias, pattern)) <= 1e-6


@pytest.mark.parametrize("batch", [(), (2, 3), (0,), (2, 0)], ids=str)
def test_what_serves_devices_without_a_kernel_agrees_with_the_kernel(
    batch: tuple[int, ...], distance: Distance
) -> None:
    values, bias, pattern = random_layer(330, 200)
    inputs, gradient = torch.randn(*batch, 330), torch.randn(*batch, 200)
    assert distance(_forward(inputs, values, bias, *pattern), sparse_linear(inputs, values, bias, pattern)) <= 1e-6
    for wanted in WANTED:
        arguments = (gradient, inputs, values, *pattern, wanted)
        native = torch.ops.lth_fast.sparse_linear_backward(*arguments)
        for found, like in zip(_backward(*arguments), native, strict=True):
            assert distance(found, like) <= 1e-6


# torch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)], ids=str)
def test_the_registrations_are_consistent(batch: tuple[int, ...], with_bias: bool) -> None:
    values, bias, pattern = random_layer(7, 3)
    inputs, values, bias = as_leaves(torch.randn(*batch, 7), values, bias)
    ops = torch.ops.lth_fast
    arguments = (inputs, values, bias if with_bias else None, *pattern)
    torch.library.opcheck(ops.sparse_linear, arguments)
    torch.library.opcheck(ops.sparse_linear, (*arguments, True))
    gradient, values, inputs = torch.randn(*batch, 3), values.detach(), inputs.detach()
    for wanted in WANTED:
        torch.library.opcheck(ops.sparse_linear_backward, (gradient, inputs, values, *pattern, wanted))


def test_a_compiled_graph_gives_the_same_output_and_gradients() -> None:
    values, bias, pattern = random_layer(33, 20)
    compiled = torch.compile(sparse_linear, backend="aot_eager", fullgraph=True)
    inputs = torch.randn(5, 33)
    eager, traced = as_leaves(inputs, values, bias), as_leaves(inputs, values, bias)
    out, like = compiled(*traced, pattern), sparse_linear(*eager, pattern)
    out.square().sum().backward()
    like.square().sum().backward()
    assert torch.equal(out, like)
    for tensor, leaf in zip(traced, eager, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert torch.equal(tensor.grad, leaf.grad)


PATTERN = sparse_pattern(torch.tensor([[True, False, True, False], [False] * 4, [False, True, False, True]]))
INPUT, VALUES = torch.ones(2, 4), torch.ones(4)
WRONG: dict[str, tuple[tuple[Tensor | None, ...], SparsePattern, str]] = {
    "values of two dimensions": ((INPUT, torch.ones(2, 2), None), PATTERN, r"values must have 1 dimension .* \[2, 2\]"),
    "values of another length": ((INPUT, torch.ones(5), None), PATTERN, r"columns must have shape \[5\] .* got \[4\]"),
    "half precision": ((INPUT.half(), VALUES.half(), None), PATTERN, "values must be float32 or float64, got Half"),
    "input of another dtype": (
        (INPUT.double(), VALUES, None),
        PATTERN,
        r"input must have the dtype of values \(Float\), got Double",
    ),
    "input of other features": ((torch.ones(2, 5), VALUES, None), PATTERN, r"shape \[..., 4\], got \[2, 5\]"),
    "input without dimensions": ((torch.ones(()), VALUES, None), PATTERN, r"shape \[..., 4\], got \[\]"),
    "bias of another length": ((INPUT, VALUES, torch.ones(4)), PATTERN, r"bias must have shape \[3\], got \[4\]"),
    "bias of two dimensions": ((INPUT, VALUES, torch.ones(3, 1)), PATTERN, r"shape \[3\], got \[3, 1\]"),
    "bias of another dtype": ((INPUT, VALUES, torch.ones(3).double()), PATTERN, "bias must have the dtype of values"),
    "starts of another dtype": (
        (INPUT, VALUES, None),
        PATTERN._replace(row_starts=PATTERN.row_starts.long()),
        r"row_starts must be int32 of shape \[column panels, out_features \+ 1\], got Long",
    ),
    "starts of one dimension": (
        (INPUT, VALUES, None),
        PATTERN._replace(column_starts=PATTERN.column_starts[0]),
        r"column_starts must be int32 of shape \[row panels, in_features \+ 1\], got Int of shape \[5\]",
    ),
    "order of another shape": (
        (INPUT, VALUES, None),
        PATTERN._replace(row_order=PATTERN.row_order[:, :2]),
        r"row_order must be int32 of shape \[column panels, out_features\], here \[1, 3\], got Int of shape \[1, 2\]",
    ),
    "order of other panels": (
        (INPUT, VALUES, None),
        PATTERN._replace(row_order=PATTERN.row_order.repeat(2, 1)),
        r"row_order must be int32 .* here \[1, 3\], got Int of shape \[2, 3\]",
    ),
    "order of three dimensions": (
        (INPUT, VALUES, None),
        PATTERN._replace(row_order=PATTERN.row_order[..., None]),
        r"row_order must be int32 .* here \[1, 3\], got Int of shape \[1, 3, 1\]",
    ),
    "no panels": (
        (INPUT, VALUES, None),
        PATTERN._replace(row_starts=PATTERN.row_starts[:0], row_order=PATTERN.row_order[:0]),
        r"row_starts must be int32 .* got Int of shape \[0, 4\]",
    ),
    "order of another dtype": (
        (INPUT, VALUES, None),
        PATTERN._replace(column_order=PATTERN.column_order.short()),
        "column_order must be int32 .* got Short",
    ),
    "columns of another dtype": (
        (INPUT, VALUES, None),
        PATTERN._replace(columns=PATTERN.columns.long()),
        "columns must be int32 or int16, got Long",
    ),
    "columns of two dimensions": (
        (INPUT, VALUES, None),
        PATTERN._replace(columns=PATTERN.columns[:, None]),
        r"columns must have shape \[4\] .* got \[4, 1\]",
    ),
    "short permutation": (
        (INPUT, VALUES, None),
        PATTERN._replace(permutation=PATTERN.permutation[:3]),
        r"permutation must have shape \[4\] .* got \[3\]",
    ),
    "a strided pattern": (
        (INPUT, VALUES, None),
        PATTERN._replace(permutation=PATTERN.permutation.repeat_interleave(2)[::2]),
        "tensors of the pattern must be contiguous",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named_with_what_was_expected_and_given(case: str, call: Callable[..., Tensor]) -> None:
    arguments, pattern, message = WRONG[case]
    with pytest.raises(RuntimeError, match=message):
        call(sparse_linear, *arguments, pattern)


@pytest.mark.parametrize("shape", [(4, 3), (6, 3), (5, 2), (5, 4), (0, 3), (1, 5, 3)], ids=str)
def test_a_gradient_of_another_shape_than_the_outputs_is_refused(shape: tuple[int, ...]) -> None:
    values, _, pattern = random_layer(4, 3)
    gradient, inputs = torch.randn(shape), torch.randn(5, 4)
    message = r"grad_output must have shape \[5, 3\] for input of shape \[5, 4\], got " + re.escape(str(list(shape)))
    for wanted in WANTED[1:]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.lth_fast.sparse_linear_backward(gradient, inputs, values, *pattern, wanted)


def test_a_backward_with_arguments_of_another_layer_names_them() -> None:
    values, _, pattern = random_layer(4, 3, 1.0)
    backward, gradient, inputs = torch.ops.lth_fast.sparse_linear_backward, torch.randn(5, 3), torch.randn(5, 4)
    with pytest.raises(RuntimeError, match=r"input must have shape \[..., 4\], got \[5, 7\]"):
        backward(gradient, torch.randn(5, 7), values, *pattern, (True, True, True))
    with pytest.raises(RuntimeError, match=r"values must have shape \[12\], got \[3\]"):
        backward(gradient, inputs, values[:3], *pattern, (True, False, False))
    with pytest.raises(RuntimeError, match=r"grad_output must have the dtype of input \(Float\), got Double"):
        backward(gradient.double(), inputs, values, *pattern, (True, True, True))


@pytest.mark.long
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("survivors", [3, 20, 70])
def test_the_last_of_as_many_survivors_as_there_may_be_get_their_gradient(survivors: int, distance: Distance) -> None:
    """It asks for 13 GB, of which it touches the last pages alone: the line that ends at survivor 2**31 - 1."""
    most = 2**31 - 1
    starts, order = torch.tensor([[most - survivors, most]], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    columns = torch.empty(most, dtype=torch.int16)
    columns[-survivors:] = torch.arange(survivors, dtype=torch.int16)
    gradient, inputs = torch.randn(16, 1), torch.randn(16, survivors)
    small = sparse_pattern(torch.ones(1, survivors, dtype=torch.bool))
    found = values_grad(gradient, inputs, small._replace(row_starts=starts, row_order=order, columns=columns))
    assert distance(found[-survivors:], (gradient.double().t() @ inputs.double()).flatten()) <= 1e-6


@pytest.mark.parametrize("part", PATTERN._fields)
def test_a_pattern_on_another_device_is_refused(part: str) -> None:
    elsewhere = PATTERN._replace(**{part: getattr(PATTERN, part).to("meta")})
    with pytest.raises(RuntimeError, match=r"the pattern must be on the device of values \(cpu\), got meta"):
        sparse_linear(INPUT, VALUES, None, elsewhere)


@pytest.mark.usefixtures("kernels")
def test_whether_a_derivative_is_asked_for_does_not_change_the_output(call: Callable[..., Tensor]) -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(5, 33)
    assert torch.equal(call(sparse_linear, inputs, values, bias, pattern), sparse_linear(inputs, values, bias, pattern))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it
def test_a_derivative_in_forward_mode_is_refused_and_not_taken_for_zero() -> None:
    values, bias, pattern = random_layer(33, 20)
    inputs = torch.randn(5, 33)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
        sparse_linear(forward_ad.make_dual(inputs, torch.ones_like(inputs)), values, bias, pattern)


@pytest.mark.usefixtures("kernels")
def test_a_survivor_that_is_zero_gets_its_gradient() -> None:
    mask = torch.rand(20, 33) < 0.4
    pattern, values = sparse_pattern(mask), torch.zeros(int(mask.sum()), requires_grad=True)
    dense = nn.Linear(33, 20, bias=False)
    nn.init.zeros_(dense.weight)
    inputs, gradient = torch.randint(-3, 4, (5, 33)).float(), torch.randint(-3, 4, (5, 20)).float()
    sparse_linear(inputs, values, None, pattern).backward(gradient)
    dense(inputs).backward(gradient)
    assert values.grad is not None
    assert dense.weight.grad is not None
    assert torch.equal(values.grad, from_dense(dense.weight.grad, pattern))
