from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lth_fast.ops import SparseConv2dPattern, sparse_conv2d, sparse_conv2d_pattern
from lth_fast.ops.sparse_conv2d import _backward, _forward, reference, to_dense

Distance = Callable[[Tensor, Tensor], float]

# What computes the op on CUDA tensors, by the operator's name.
DENSE_ARITHMETIC = {
    "sparse_conv2d": _forward,
    "sparse_conv2d_backward": _backward,
}


@pytest.fixture
def dense_arithmetic() -> Iterator[None]:
    """The CPU's tensors are served as CUDA's are."""
    served = set()

    def seen(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def serve(*arguments: Any) -> Any:
            served.add(name)
            return function(*arguments)

        return serve

    with torch.library._scoped_library("lth_fast", "IMPL") as library:
        for name, function in DENSE_ARITHMETIC.items():
            library.impl(name, seen(name, function), "CPU", allow_override=True)
        yield
    assert "sparse_conv2d" in served


# Which of the gradients of input, values and bias.
WANTED = list(itertools.product([False, True], repeat=3))


@dataclass(frozen=True)
class Case:
    """A convolution and an input for it."""

    batch: int = 3
    in_channels: int = 4
    out_channels: int = 6
    size: tuple[int, int] = (9, 8)
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 0.4

    def mask(self) -> Tensor:
        return torch.rand(self.out_channels, self.in_channels // self.groups, *self.kernel_size) < self.density

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.batch, self.in_channels, *self.size, dtype=dtype)

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)


GEOMETRIES = {
    "3x3": Case(),
    "3x3 without padding": Case(padding=(0, 0)),
    "1x1": Case(kernel_size=(1, 1), padding=(0, 0)),
    "1x1, stride": Case(kernel_size=(1, 1), padding=(0, 0), stride=(2, 2)),
    "1x1, stride and padding": Case(kernel_size=(1, 1), padding=(0, 4), stride=(3, 3), size=(4, 4)),
    "stride": Case(stride=(2, 1), padding=(1, 2)),
    "stride that leaves out pixels": Case(stride=(4, 5), kernel_size=(2, 3), padding=(0, 1)),
    "dilation": Case(dilation=(2, 1)),
    "stride and dilation": Case(stride=(2, 3), dilation=(3, 2), kernel_size=(2, 3), padding=(2, 0)),
    "groups": Case(groups=2),
    "depthwise": Case(groups=4, out_channels=8),
    "5x3 with everything": Case(
        kernel_size=(5, 3), stride=(3, 2), padding=(2, 0), dilation=(2, 3), groups=2, size=(11, 13)
    ),
    "padding beyond the kernel": Case(padding=(4, 5), size=(2, 2)),
    "more rows than fit the registers": Case(size=(3, 37)),
    "stride beyond the input": Case(size=(3, 2), stride=(5, 4)),
    "taps farther apart than the caches reach": Case(size=(3, 2), padding=(150, 150), dilation=(150, 150)),
}
# Widths from one pixel to more than the registers hold, with batches that fill tiles of each width, and a rest.
MAPS = [((1, 1), 70), ((2, 2), 33), ((3, 3), 64), ((4, 4), 64), ((7, 7), 17), ((8, 8), 8), ((5, 16), 9), ((2, 33), 1)]


def tolerance(tensor: Tensor) -> float:
    """cuDNN may take Winograd's algorithm, or sum over all pixels in one go, which is a digit less exact."""
    return 1e-5 if tensor.is_cuda else 1e-6


def random_layer(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, SparseConv2dPattern]:
    """Values, bias and pattern."""
    mask = case.mask()
    values, bias = torch.randn(int(mask.sum()), dtype=dtype), torch.randn(case.out_channels, dtype=dtype)
    return values, bias, sparse_conv2d_pattern(mask, case.groups)


def as_leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def assert_agrees_with_reference(
    case: Case, distance: Distance, dtype: torch.dtype = torch.float32, inputs: Tensor | None = None
) -> None:
    """Output and all gradients, in ``dtype``, against the reference in float64."""
    values, bias, pattern = random_layer(case, dtype)
    tensors = (case.input(dtype) if inputs is None else inputs, values, bias)
    ours, expected = as_leaves(*tensors), as_leaves(*tensors, dtype=torch.float64)
    out, like = sparse_conv2d(*ours, pattern, *case.geometry), reference(*expected, pattern, *case.geometry)
    assert distance(out, like) <= tolerance(out)
    gradient = torch.randn(out.shape, dtype=out.dtype)
    out.backward(gradient)
    like.backward(gradient.double())
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= tolerance(tensor)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_output_and_gradients_are_those_of_the_reference(name: str, dtype: torch.dtype, distance: Distance) -> None:
    assert_agrees_with_reference(GEOMETRIES[name], distance, dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("size", "batch"), MAPS, ids=str)
def test_maps_and_batches_of_every_size_agree(
    size: tuple[int, int], batch: int, kernel: int, distance: Distance
) -> None:
    case = Case(batch=batch, size=size, kernel_size=(kernel, kernel), padding=(kernel // 2, kernel // 2))
    assert_agrees_with_reference(case, distance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_every_density_agrees_over_several_panels_of_channels(density: float, distance: Distance) -> None:
    case = Case(batch=9, in_channels=150, out_channels=70, size=(5, 12), density=density)
    assert_agrees_with_reference(case, distance)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"out_channels": 0}, {"in_channels": 0}], ids=str)
def test_empty_batches_and_layers_give_what_a_dense_layer_gives(empty: dict[str, int], distance: Distance) -> None:
    case = replace(Case(), **empty)
    values, bias, pattern = random_layer(case)
    inputs, values, bias = as_leaves(case.input(), values, bias)
    out = sparse_conv2d(inputs, values, bias, pattern, *case.geometry)
    assert distance(out, bias.view(1, -1, 1, 1).expand(case.batch, case.out_channels, *case.size)) == 0.0
    out.sum().backward()
    for tensor in (inputs, values):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.count_nonzero() == 0


@pytest.mark.usefixtures("kernels")
def test_channels_without_survivors_give_their_bias_and_no_gradient(distance: Distance) -> None:
    case = Case()
    mask = case.mask()
    mask[2], mask[:, 1] = False, False
    pattern = sparse_conv2d_pattern(mask)
    inputs, values, bias = as_leaves(case.input(), torch.randn(int(mask.sum())), torch.randn(6))
    out = sparse_conv2d(inputs, values, bias, pattern, *case.geometry)
    assert torch.equal(out[:, 2], bias[2].expand_as(out[:, 2]))
    out.square().sum().backward()
    assert inputs.grad is not None
    assert inputs.grad[:, 1].count_nonzero() == 0
    assert inputs.grad[:, 0].count_nonzero() > 0
    assert distance(
        out, reference(inputs.double(), values.double(), bias.double(), pattern, *case.geometry)
    ) <= tolerance(out)


def test_error_against_float64_is_no_larger_than_that_of_the_dense_layer(distance: Distance) -> None:
    case = Case(batch=8, in_channels=256, out_channels=64, density=0.2)
    values, bias, pattern = random_layer(case)
    inputs = case.input()
    exact = reference(inputs.double(), values.double(), bias.double(), pattern, *case.geometry)
    dense = distance(reference(inputs, values, bias, pattern, *case.geometry), exact)
    assert distance(sparse_conv2d(inputs, values, bias, pattern, *case.geometry), exact) <= max(1e-6, 1.5 * dense)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wanted", range(3), ids=["input", "values", "bias"])
def test_a_single_gradient_can_be_asked_for(wanted: int, distance: Distance) -> None:
    case = Case(stride=(2, 1))
    values, bias, pattern = random_layer(case)
    tensors = [case.input(), values, bias]
    expected = as_leaves(*tensors, dtype=torch.float64)
    reference(*expected, pattern, *case.geometry).square().sum().backward()
    tensors[wanted].requires_grad_()
    sparse_conv2d(*tensors, pattern, *case.geometry).square().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]
    found, like = tensors[wanted].grad, expected[wanted].grad
    assert found is not None
    assert like is not None
    assert distance(found, like) <= tolerance(found)


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
    case = Case()
    values, bias, pattern = random_layer(case)
    tensors = (case.input(), values, bias)
    for tensor, asked_for in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(asked_for)
    with Recorder() as recorder:
        out = sparse_conv2d(*tensors, pattern, *case.geometry)
        if any(wanted):
            out.sum().backward()
    if any(wanted):
        assert recorder.called["lth_fast::sparse_conv2d_backward"][-1] == list(wanted)
    else:
        assert "lth_fast::sparse_conv2d_backward" not in recorder.called


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_only_the_wanted_gradients_are_returned(wanted: tuple[bool, bool, bool], distance: Distance) -> None:
    case = Case(batch=19, size=(9, 33))
    values, bias, pattern = random_layer(case)
    leaves = as_leaves(case.input(), values, bias, dtype=torch.float64)
    expected = reference(*leaves, pattern, *case.geometry)
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    inputs = leaves[0].detach().float()
    found = torch.ops.lth_fast.sparse_conv2d_backward(gradient, inputs, values, *pattern, *case.geometry, wanted)
    for part, leaf, asked_for in zip(found, leaves, wanted, strict=True):
        if asked_for:
            assert leaf.grad is not None
            assert distance(part, leaf.grad) <= tolerance(part)
        else:
            assert part.numel() == 0


def test_without_a_bias_the_output_is_the_convolution_alone(distance: Distance) -> None:
    case = Case()
    values, _, pattern = random_layer(case)
    inputs = case.input()
    weight = to_dense(values, pattern, case.kernel_size).double()
    expected = torch.nn.functional.conv2d(inputs.double(), weight, padding=1)
    assert distance(sparse_conv2d(inputs, values, None, pattern, *case.geometry), expected) <= 1e-6


@pytest.mark.usefixtures("kernels")
def test_inputs_and_gradients_may_lie_in_memory_in_any_order(distance: Distance) -> None:
    case = Case()
    values, bias, pattern = random_layer(case)
    last = case.input().to(memory_format=torch.channels_last)
    part = torch.randn(5, 7, 9, 16)[1:4, 2:6, :, ::2]
    turned = torch.randn(8, 9, 4, 3).permute(3, 2, 1, 0)
    gradients = (
        torch.randn(()).expand(3, 6, 9, 8),
        torch.randn(3, 9, 8, 6).permute(0, 3, 1, 2),
        turned.repeat(1, 2, 1, 1)[:, :6],
    )
    for inputs, grad_output in zip((last, part, turned), gradients, strict=True):
        single, double = as_leaves(values, bias), as_leaves(values, bias, dtype=torch.float64)
        leaf, exact = inputs.detach().requires_grad_(), inputs.double().requires_grad_()
        out, like = (
            sparse_conv2d(leaf, *single, pattern, *case.geometry),
            reference(exact, *double, pattern, *case.geometry),
        )
        assert distance(out, like) <= tolerance(out)
        out.backward(grad_output)
        like.backward(grad_output.double())
        for tensor, expected in zip([leaf, *single], [exact, *double], strict=True):
            assert tensor.grad is not None
            assert expected.grad is not None
            assert distance(tensor.grad, expected.grad) <= tolerance(tensor)


@pytest.mark.usefixtures("kernels")
def test_values_and_biases_may_be_columns_of_a_table(distance: Distance) -> None:
    case = Case()
    values, bias, pattern = random_layer(case)
    inputs = case.input()
    columns = [torch.stack([tensor, torch.zeros_like(tensor)], 1)[:, 0] for tensor in (values, bias)]
    ours = [inputs.clone().requires_grad_(), *(column.requires_grad_() for column in columns)]
    expected = as_leaves(inputs, values, bias, dtype=torch.float64)
    out, like = sparse_conv2d(*ours, pattern, *case.geometry), reference(*expected, pattern, *case.geometry)
    assert distance(out, like) <= tolerance(out)
    out.square().sum().backward()
    like.square().sum().backward()
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= tolerance(tensor)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "case",
    [Case(2, 2, 3, (4, 3)), Case(2, 2, 4, (5, 4), stride=(2, 1), dilation=(1, 2), padding=(1, 2), groups=2)],
    ids=["plain", "strided"],
)
def test_first_and_second_derivatives_agree_with_finite_differences(case: Case, with_bias: bool) -> None:
    values, bias, pattern = random_layer(case, torch.float64)
    tensors = as_leaves(case.input(torch.float64), values, *([bias] if with_bias else []))

    def sparse(inputs: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        return sparse_conv2d(inputs, values, bias, pattern, *case.geometry).sin()

    assert torch.autograd.gradcheck(sparse, tensors)
    assert torch.autograd.gradgradcheck(sparse, tensors)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [3, 17])
def test_with_relu_output_and_gradients_are_those_of_a_relu_behind_it(batch: int, distance: Distance) -> None:
    case = Case(batch=batch)
    values, bias, pattern = random_layer(case)
    tensors = (case.input(), values, bias)
    ours, expected = as_leaves(*tensors), as_leaves(*tensors, dtype=torch.float64)
    out = sparse_conv2d(*ours, pattern, *case.geometry, relu=True)
    like = reference(*expected, pattern, *case.geometry, relu=True)
    assert out.min() == 0.0
    assert distance(out, like) <= tolerance(out)
    gradient = torch.randn(out.shape)
    out.backward(gradient)
    like.backward(gradient.double())
    for tensor, leaf in zip(ours, expected, strict=True):
        assert tensor.grad is not None
        assert leaf.grad is not None
        assert distance(tensor.grad, leaf.grad) <= tolerance(tensor)


def test_derivatives_with_relu_agree_with_finite_differences() -> None:
    case = Case(2, 2, 3, (4, 3))
    values, bias, pattern = random_layer(case, torch.float64)

    def sparse(*leaves: Tensor) -> Tensor:
        return sparse_conv2d(*leaves, pattern, *case.geometry, relu=True).sin()

    leaves = as_leaves(case.input(torch.float64), values, bias)
    assert torch.autograd.gradcheck(sparse, leaves)
    assert torch.autograd.gradgradcheck(sparse, leaves)


@pytest.mark.usefixtures("kernels")
def test_relu_lets_nan_through_as_torchs_does() -> None:
    pattern = sparse_conv2d_pattern(torch.ones(1, 1, 1, 1, dtype=torch.bool))
    inputs = torch.full((17, 1, 5, 5), float("nan"))  # sixteen pixels, eight and a rest; two tiles of samples
    assert sparse_conv2d(inputs, torch.ones(1), None, pattern, (1, 1), relu=True).isnan().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_leaves_the_other_samples_alone(value: float, distance: Distance) -> None:
    case = Case(batch=20, density=0.9)
    values, bias, pattern = random_layer(case)
    inputs = case.input()
    expected = reference(inputs.double(), values.double(), bias.double(), pattern, *case.geometry)
    inputs[3] = value
    found = sparse_conv2d(inputs, values, bias, pattern, *case.geometry)
    others = torch.arange(20) != 3
    assert distance(found[others], expected[others]) <= tolerance(found)
    assert not found[3].isfinite().any()


@pytest.mark.usefixtures("isa")
def test_denormals_are_flushed_and_the_callers_setting_is_left_as_it_was() -> None:
    pattern = sparse_conv2d_pattern(torch.ones(1, 1, 1, 1, dtype=torch.bool))
    tiny = torch.full((1,), 1e-39)
    leaves = as_leaves(torch.ones(2, 1, 3, 3), torch.ones(1), torch.zeros(1))
    sparse_conv2d(*leaves, pattern, (1, 1)).backward(tiny.expand(2, 1, 3, 3))
    for result in (sparse_conv2d(leaves[0].detach(), tiny, None, pattern, (1, 1)), *(leaf.grad for leaf in leaves)):
        assert result.view(torch.int32).unique().tolist() == [0]
    assert (tiny * 1).view(torch.int32).tolist() == tiny.view(torch.int32).tolist() != [0]


@pytest.mark.usefixtures("isa")
def test_errors_do_not_grow_with_long_sums(distance: Distance) -> None:
    """In one chain 4608 products have an error of 1.05e-6."""
    case = Case(batch=16, in_channels=512, out_channels=512, size=(4, 4), density=1.0)
    values, bias, pattern = random_layer(case)
    inputs, gradient = case.input(), torch.randn(16, 512, 4, 4)
    ours, exact = as_leaves(inputs), as_leaves(inputs, dtype=torch.float64)
    out = sparse_conv2d(*ours, values, bias, pattern, *case.geometry)
    like = reference(*exact, values.double(), bias.double(), pattern, *case.geometry)
    assert distance(out, like) <= 5e-7
    (grad_input,) = torch.autograd.grad(out, ours, gradient)
    (grad_like,) = torch.autograd.grad(like, exact, gradient.double())
    assert distance(grad_input, grad_like) <= 5e-7


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("batch", [5, 20], ids=["threads share channels", "threads share the batch"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_bits_do_not_depend_on_the_number_of_threads(
    stride: int, batch: int, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    case = Case(batch=batch, in_channels=64, out_channels=96, size=(16, 16), stride=(stride, stride), density=0.1)
    values, bias, pattern = random_layer(case)
    inputs = case.input()
    gradient = torch.randn(batch, 96, 16 // stride, 16 // stride)

    def everything() -> Tensor:
        leaves = as_leaves(inputs, values, bias)
        out = sparse_conv2d(*leaves, pattern, *case.geometry)
        out.backward(gradient)
        return torch.cat([out.flatten(), *(leaf.grad.flatten() for leaf in leaves if leaf.grad is not None)])

    assert torch.equal(on_threads(1, everything), on_threads(2, everything))


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=70, out_channels=1, size=(32, 32)),
        Case(16 * 32_769, 1, 1, (1, 15), (1, 1), padding=(0, 0)),  # more tiles than torch adds up on one thread
    ],
    ids=["large images", "a large batch"],
)
def test_of_frozen_values_the_bits_of_the_gradient_of_the_bias_do_not_depend_on_the_number_of_threads(
    case: Case, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    """Torch's own sum to a single number is one per thread, added up in the end."""
    values, bias, pattern = random_layer(case)
    inputs, gradient = case.input(), torch.randn(case.batch, 1, *case.size)

    def of_bias() -> Tensor:
        (leaf,) = as_leaves(bias)
        return torch.autograd.grad(sparse_conv2d(inputs, values, leaf, pattern, *case.geometry), leaf, gradient)[0]

    alone = on_threads(1, of_bias)
    assert (alone.double() - gradient.double().sum()).abs() <= 1e-6 * gradient.norm()
    for threads in (2, 3, 4):
        assert torch.equal(alone, on_threads(threads, of_bias))


def test_under_autocast_the_layer_computes_in_float32(distance: Distance) -> None:
    case = Case()
    values, bias, pattern = random_layer(case)
    inputs = case.input()
    (leaf,) = as_leaves(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sparse_conv2d(inputs.bfloat16(), leaf, bias, pattern, *case.geometry)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert distance(out, reference(inputs.bfloat16().float(), values, bias, pattern, *case.geometry)) <= 1e-6


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")  # torch 2.11, of the override
@pytest.mark.usefixtures("dense_arithmetic")
class TestWhatServesCuda:
    """On the CPU's tensors."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("name", GEOMETRIES)
    def test_output_and_gradients_are_those_of_the_reference(
        self, name: str, dtype: torch.dtype, distance: Distance
    ) -> None:
        assert_agrees_with_reference(GEOMETRIES[name], distance, dtype)

    @pytest.mark.parametrize("wanted", range(3), ids=["input", "values", "bias"])
    def test_a_single_gradient_can_be_asked_for(self, wanted: int, distance: Distance) -> None:
        test_a_single_gradient_can_be_asked_for(wanted, distance)

    def test_inputs_and_gradients_may_lie_in_memory_in_any_order(self, distance: Distance) -> None:
        test_inputs_and_gradients_may_lie_in_memory_in_any_order(distance)

    def test_a_batch_may_be_empty(self, distance: Distance) -> None:
        test_empty_batches_and_layers_give_what_a_dense_layer_gives({"batch": 0}, distance)

    @pytest.mark.parametrize("name", ["3x3", "stride", "groups"])
    def test_first_and_second_derivatives_agree_with_finite_differences(self, name: str) -> None:
        case = replace(GEOMETRIES[name], batch=1, size=(4, 3))
        test_first_and_second_derivatives_agree_with_finite_differences(case, with_bias=True)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("name", ["3x3", "5x3 with everything"])
    def test_the_registrations_are_consistent(self, name: str) -> None:
        test_the_registrations_are_consistent(name, with_bias=True)


# torch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", ["3x3", "5x3 with everything"])
def test_the_registrations_are_consistent(name: str, with_bias: bool) -> None:
    case = GEOMETRIES[name]
    values, bias, pattern = random_layer(case)
    inputs, values, bias = as_leaves(case.input(), values, bias)
    arguments = (inputs, values, bias if with_bias else None, *pattern, *case.geometry)
    torch.library.opcheck(torch.ops.lth_fast.sparse_conv2d, arguments)
    torch.library.opcheck(torch.ops.lth_fast.sparse_conv2d, (*arguments, True))
    gradient = torch.randn(sparse_conv2d(inputs, values, bias, pattern, *case.geometry).shape)
    arguments = (gradient, inputs.detach(), values.detach(), *pattern, *case.geometry)
    for wanted in WANTED:
        torch.library.opcheck(torch.ops.lth_fast.sparse_conv2d_backward, (*arguments, wanted))


@pytest.mark.parametrize("relu", [False, True])
def test_a_compiled_graph_gives_the_same_output_and_gradients(relu: bool) -> None:
    case = Case(stride=(2, 1))
    values, bias, pattern = random_layer(case)
    compiled = torch.compile(sparse_conv2d, backend="aot_eager", fullgraph=True)
    inputs = case.input()
    eager, traced = as_leaves(inputs, values, bias), as_leaves(inputs, values, bias)
    out, like = (
        function(*leaves, pattern, *case.geometry, relu)
        for function, leaves in ((compiled, traced), (sparse_conv2d, eager))
    )
    assert torch.equal(out, like)
    out.square().sum().backward()
    like.square().sum().backward()
    for one, other in zip(traced, eager, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(7, 9), (500, 500)], ids=str)
def test_the_gradient_of_a_bias_stays_exact_over_many_pixels(size: tuple[int, int], distance: Distance) -> None:
    mask = torch.rand(3, 2, 1, 1) < 0.5
    values, bias = as_leaves(torch.randn(int(mask.sum())), torch.zeros(3))
    out = sparse_conv2d(torch.randn(1, 2, *size), values, bias, sparse_conv2d_pattern(mask), (1, 1))
    gradient = torch.full_like(out, 0.1)  # whose rounding errors all have one sign
    out.backward(gradient)
    assert bias.grad is not None
    assert distance(bias.grad, gradient.double().sum((0, 2, 3))) <= 1e-6


# ---- errors ----

INPUT, BIAS, MASK = torch.randn(2, 4, 5, 5), torch.randn(6), torch.ones(6, 4, 3, 3, dtype=torch.bool)
VALUES, PATTERN = torch.randn(216), sparse_conv2d_pattern(MASK)
RIGHT: dict[str, Any] = {
    "input": INPUT,
    "values": VALUES,
    "bias": BIAS,
    "pattern": PATTERN,
    "kernel_size": (3, 3),
    "padding": (1, 1),
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "values of two dimensions": ({"values": VALUES.view(2, -1)}, r"values must have 1 dimension .* got \[2, 108\]"),
    "half precision": ({"values": VALUES.half()}, "values must be float32 or float64, got Half"),
    "input of another dtype": ({"input": INPUT.double()}, r"input must have the dtype of values \(Float\), got Double"),
    "unbatched input": ({"input": INPUT[0]}, r"input must have shape \[batch, 4, height, width\], got \[4, 5, 5\]"),
    "input of five dimensions": (
        {"input": INPUT[..., None]},
        r"input must have shape \[batch, 4, height, width\], got \[2, 4, 5, 5, 1\]",
    ),
    "other channels": (
        {"input": INPUT[:, :3]},
        r"input must have shape \[batch, 4, height, width\], got \[2, 3, 5, 5\]",
    ),
    "a kernel larger than the input": (
        {"kernel_size": (8, 3)},
        r"input of shape \[2, 4, 5, 5\] with padding \[1, 1\] must be at least as large .* whose height is 8",
    ),
    "a dilated kernel larger than the input": ({"dilation": (1, 4)}, "whose width is 9"),
    "bias of another shape": ({"bias": BIAS[:3]}, r"bias must have shape \[6\], got \[3\]"),
    "bias of two dimensions": ({"bias": BIAS[:, None]}, r"bias must have shape \[6\], got \[6, 1\]"),
    "bias of another dtype": ({"bias": BIAS.double()}, "bias must have the dtype of values"),
    "groups": ({"groups": 3}, "groups must be positive and divide the 4 input and 6 output channels, got 3"),
    "groups that divide the input alone": ({"groups": 4}, "groups must be positive and divide .* got 4"),
    "no groups": ({"groups": 0}, "groups must be positive and divide .* got 0"),
    "negative groups": ({"groups": -1}, "groups must be positive and divide .* got -1"),
    "stride": ({"stride": (0, 1)}, r"stride must be two integers of at least 1 and at most 2147483647, got \[0, 1\]"),
    "stride of one number": ({"stride": (1,)}, r"stride must be two integers .* got \[1\]"),
    "stride of three numbers": ({"stride": (1, 1, 1)}, r"stride must be two integers .* got \[1, 1, 1\]"),
    "padding": (
        {"padding": (0, -1)},
        r"padding must be two integers of at least 0 and at most 2147483647, got \[0, -1\]",
    ),
    "dilation": (
        {"dilation": (0, 1)},
        r"dilation must be two integers of at least 1 and at most 2147483647, got \[0, 1\]",
    ),
    "kernel": (
        {"kernel_size": (0, 1)},
        r"kernel_size must be two integers of at least 1 and at most 2147483647, got \[0, 1\]",
    ),
    "a stride beyond 32 bits": ({"stride": (2**31, 1)}, r"stride must be two integers .* got \[2147483648, 1\]"),
    "a dilation beyond 32 bits": ({"dilation": (1, 2**62)}, "dilation must be two integers .* at most 2147483647"),
    "padding of billions of pixels": ({"padding": (2**31 - 1, 2**31 - 1)}, "Storage size calculation overflowed"),
    "a stride of billions of pixels": ({"stride": (2**31 - 1, 2**31 - 1)}, r"are more than 2\*\*31 - 1 elements"),
    "a kernel smaller than the pattern's": (
        {"kernel_size": (2, 3)},
        "pattern must be one of kernel_size and groups, whose channels have 24 taps, got tap 35",
    ),
    "a kernel smaller than the pattern's last channel": (
        {
            "values": torch.ones(1),
            "pattern": sparse_conv2d_pattern(torch.arange(216).view(6, 4, 3, 3) == 215),
            "kernel_size": (2, 3),
        },
        "whose channels have 24 taps, got tap 35",
    ),
    "more groups than the pattern's": (
        {"groups": 2},
        "pattern must be one of kernel_size and groups, whose channels have 18 taps, got tap 35",
    ),
    "starts of another dtype": (
        {"pattern": PATTERN._replace(output_starts=PATTERN.output_starts.long())},
        r"output_starts must be int32 of shape \[out_channels \+ 1\], got Long of shape \[7\]",
    ),
    "taps of another dtype": (
        {"pattern": PATTERN._replace(input_taps=PATTERN.input_taps.short())},
        "input_taps must be int32, got Short",
    ),
    "taps of two dimensions": (
        {"pattern": PATTERN._replace(input_taps=PATTERN.input_taps[:, None])},
        r"input_taps must have shape \[216\] .* got \[216, 1\]",
    ),
    "a short permutation": (
        {"pattern": PATTERN._replace(permutation=PATTERN.permutation[:3])},
        r"permutation must have shape \[216\] .* got \[3\]",
    ),
    "a strided pattern": (
        {"pattern": PATTERN._replace(output_taps=PATTERN.output_taps.repeat_interleave(2)[::2])},
        "tensors of the pattern must be contiguous",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named_with_what_was_expected_and_given(case: str, call: Callable[..., Tensor]) -> None:
    wrong, message = WRONG[case]
    with pytest.raises(RuntimeError, match=message):
        call(sparse_conv2d, **{**RIGHT, **wrong})


@pytest.mark.parametrize("shape", [(2, 6, 9, 8), (4, 6, 9, 8), (3, 5, 9, 8), (3, 6, 8, 8), (0, 6, 9, 8)], ids=str)
@pytest.mark.parametrize("wanted", WANTED[1:], ids=str)
def test_a_gradient_of_another_shape_than_the_outputs_is_refused(
    shape: tuple[int, ...], wanted: tuple[bool, bool, bool]
) -> None:
    case = Case()
    values, _, pattern = random_layer(case)
    message = r"grad_output must have shape \[3, 6, 9, 8\] for input of shape \[3, 4, 9, 8\], got " + re.escape(
        str(list(shape))
    )
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lth_fast.sparse_conv2d_backward(
            torch.randn(shape), case.input(), values, *pattern, *case.geometry, wanted
        )


@pytest.mark.parametrize("taps", ["input_taps", "output_taps"])
def test_the_gradients_refuse_taps_beyond_the_kernel_in_either_order(taps: str) -> None:
    beyond = PATTERN._replace(**{taps: getattr(PATTERN, taps) + 1})
    with pytest.raises(RuntimeError, match="pattern must be one of kernel_size and groups"):
        torch.ops.lth_fast.sparse_conv2d_backward(
            torch.ones(2, 6, 5, 5), INPUT, VALUES, *beyond, (3, 3), (1, 1), (1, 1), (1, 1), 1, (True, True, True)
        )


@pytest.mark.parametrize("part", PATTERN._fields)
def test_a_pattern_on_another_device_is_refused(part: str) -> None:
    elsewhere = PATTERN._replace(**{part: getattr(PATTERN, part).to("meta")})
    with pytest.raises(RuntimeError, match=r"the pattern must be on the device of values \(cpu\), got meta"):
        sparse_conv2d(**{**RIGHT, "pattern": elsewhere})


def test_a_survivor_that_is_zero_gets_its_gradient() -> None:
    case = Case()
    mask = case.mask()
    values = torch.zeros(int(mask.sum()), requires_grad=True)
    weight = torch.zeros(mask.shape, requires_grad=True)
    inputs, gradient = torch.randint(-3, 4, (3, 4, 9, 8)).float(), torch.randint(-3, 4, (3, 6, 9, 8)).float()
    sparse_conv2d(inputs, values, None, sparse_conv2d_pattern(mask), *case.geometry).backward(gradient)
    torch.nn.functional.conv2d(inputs, weight, padding=1).backward(gradient)
    assert values.grad is not None
    assert weight.grad is not None
    assert torch.equal(values.grad, weight.grad[mask])
