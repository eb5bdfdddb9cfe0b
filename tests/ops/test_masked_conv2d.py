from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from lth_fast.ops import masked_apply, masked_conv2d, pack_mask
from lth_fast.ops.masked_conv2d import _forward, reference

Distance = Callable[[Tensor, Tensor], float]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (1, 2)},
    "dilation": {"dilation": (2, 1), "padding": (2, 0)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "all of them": {"stride": (2, 2), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
}


def random_layer(groups: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A weight that is zero where it is pruned, a bias, and the mask: 4 channels to 4 by 3 x 2 taps."""
    shape = (4, 4 // groups, 3, 2)
    mask = torch.rand(shape) > 0.5
    return torch.randn(shape, dtype=dtype) * mask, torch.randn(4, dtype=dtype), mask


def as_leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_output_and_gradients_are_those_of_the_reference(geometry: str, batch: int, distance: Distance) -> None:
    options = GEOMETRIES[geometry]
    weight, bias, mask = random_layer(options.get("groups", 1))
    tensors, bits = (torch.randn(batch, 4, 8, 7), weight, bias), pack_mask(mask)
    single, double = as_leaves(*tensors), as_leaves(*tensors, dtype=torch.float64)
    out, expected = masked_conv2d(*single, bits, **options), reference(*double, bits, **options)
    assert distance(out, expected) <= 1e-6
    gradient = torch.randn(out.shape)
    out.backward(gradient)
    expected.backward(gradient.double())
    for tensor, like in zip(single, double, strict=True):
        assert tensor.grad is not None
        assert like.grad is not None
        assert distance(tensor.grad, like.grad) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_forward_is_bit_for_bit_the_dense_one(dtype: torch.dtype) -> None:
    weight, bias, mask = random_layer(dtype=dtype)
    inputs = torch.randn(2, 4, 8, 7, dtype=dtype)
    assert torch.equal(masked_conv2d(inputs, weight, bias, pack_mask(mask)), conv2d(inputs, weight, bias))
    assert torch.equal(masked_conv2d(inputs, weight, None, pack_mask(mask)), conv2d(inputs, weight))


@pytest.mark.parametrize("wanted", range(3), ids=["input", "weight", "bias"])
def test_a_single_gradient_can_be_asked_for(wanted: int, distance: Distance) -> None:
    weight, bias, mask = random_layer()
    tensors = [torch.randn(2, 4, 8, 7), weight, bias]
    expected = as_leaves(*tensors, dtype=torch.float64)
    reference(*expected, pack_mask(mask)).square().sum().backward()
    tensors[wanted].requires_grad_()
    masked_conv2d(*tensors, pack_mask(mask)).square().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]
    found, like = tensors[wanted].grad, expected[wanted].grad
    assert found is not None
    assert like is not None
    assert distance(found, like) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_weight_gradient_is_exactly_zero_where_pruned_whatever_arrives(value: float) -> None:
    weight, bias, mask = random_layer()
    (weight,) = as_leaves(weight)
    out = masked_conv2d(torch.ones(2, 4, 8, 7), weight, bias, pack_mask(mask))
    out.backward(torch.full(out.shape, value))
    assert weight.grad is not None
    assert not weight.grad[mask].isfinite().any()
    assert weight.grad[~mask].view(torch.int32).unique().tolist() == [0]


@pytest.mark.usefixtures("kernels")
def test_inputs_weights_and_gradients_may_be_in_channels_last_order(distance: Distance) -> None:
    weight, bias, mask = random_layer()
    bits, inputs = pack_mask(mask), torch.randn(2, 4, 8, 7)
    double = as_leaves(inputs, weight, bias, dtype=torch.float64)
    expected = reference(*double, bits)
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    single = as_leaves(inputs.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last), bias)
    assert not single[1].is_contiguous()
    out = masked_conv2d(*single, bits)
    assert distance(out, expected) <= 1e-6
    out.backward(gradient.to(memory_format=torch.channels_last))
    for tensor, like in zip(single, double, strict=True):
        assert tensor.grad is not None
        assert like.grad is not None
        assert distance(tensor.grad, like.grad) <= 1e-6
    assert single[1].grad is not None
    assert single[1].grad[~mask].tolist() == [0.0] * int((~mask).sum())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("geometry", ["plain", "all of them"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_first_and_second_derivatives_agree_with_finite_differences(geometry: str, with_bias: bool) -> None:
    options = GEOMETRIES[geometry]
    weight, bias, mask = random_layer(options.get("groups", 1), torch.float64)
    bits = pack_mask(mask)
    tensors = as_leaves(torch.randn(1, 4, 4, 3, dtype=torch.float64), weight, *([bias] if with_bias else []))

    def masked(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # A difference quotient moves pruned weights too, which the operator takes for zero.
        return masked_conv2d(inputs, masked_apply(weight, bits), bias, bits, **options).sin()

    assert torch.autograd.gradcheck(masked, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(masked, tensors, fast_mode=True)


def test_second_derivatives_are_those_of_the_reference_and_zero_where_pruned(distance: Distance) -> None:
    weight, bias, mask = random_layer()
    bits, inputs = pack_mask(mask), torch.randn(2, 4, 8, 7)

    def penalty(op: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        leaves = as_leaves(inputs, weight, dtype=dtype)
        gradients = torch.autograd.grad(op(*leaves, bias.to(dtype), bits).tanh().sum(), leaves, create_graph=True)
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
        assert leaves[1].grad is not None
        return leaves[1].grad

    found = penalty(masked_conv2d, torch.float32)
    assert distance(found, penalty(reference, torch.float64)) <= 1e-5
    assert found[~mask].tolist() == [0.0] * int((~mask).sum())


def test_the_bits_do_not_depend_on_the_number_of_threads(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
) -> None:
    # Small whole numbers: their sums are exact in any order, so a difference would come from the mask alone.
    mask = torch.rand(160, 100, 3, 3) > 0.5
    weight = torch.randint(-3, 4, mask.shape) * mask.float()
    inputs, gradient = torch.randint(-3, 4, (1, 100, 4, 4)).float(), torch.randint(-3, 4, (1, 160, 2, 2)).float()

    def weight_gradient() -> Tensor:
        (leaf,) = as_leaves(weight)
        masked_conv2d(inputs, leaf, None, pack_mask(mask)).backward(gradient)
        assert leaf.grad is not None
        return leaf.grad

    one = on_threads(1, weight_gradient)
    assert torch.equal(on_threads(2, weight_gradient), one)
    assert torch.equal(one != 0, (one != 0) & mask)
    assert one.any()


def test_autocast_casts_as_for_a_dense_convolution() -> None:
    weight, bias, mask = random_layer()
    inputs = torch.randn(2, 4, 8, 7)
    ours, dense = as_leaves(inputs, weight, bias), as_leaves(inputs, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = masked_conv2d(*ours, pack_mask(mask)), conv2d(*dense)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    for (tensor, like), pruning in zip(zip(ours, dense, strict=True), (True, mask, True), strict=True):
        assert tensor.grad is not None
        assert like.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, like.grad * pruning)


def test_shapes_are_traced_through_the_computation_itself() -> None:
    weight, bias, mask = random_layer(2)
    arguments = (torch.randn(2, 4, 8, 7), weight, bias, pack_mask(mask), (2, 1), (1, 2), (1, 1), 2)
    assert torch.equal(_forward(*arguments), masked_conv2d(*arguments))


# torch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_registrations_are_consistent() -> None:
    weight, bias, mask = random_layer(2)
    inputs, weight, bias = as_leaves(torch.randn(2, 4, 8, 7), weight, bias)
    arguments = (inputs, weight, bias, pack_mask(mask), (2, 1), (1, 2), (1, 1), 2)
    torch.library.opcheck(torch.ops.lth_fast.masked_conv2d, arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_registrations_agree_on_shapes_and_memory_layout(memory_format: torch.memory_format) -> None:
    weight, _, mask = random_layer()
    arguments = (
        torch.randn(2, 4, 8, 7).to(memory_format=memory_format),
        weight.to(memory_format=memory_format),
        None,
        pack_mask(mask),
        (1, 1),
        (0, 0),
        (1, 1),
        1,
    )
    torch.library.opcheck(torch.ops.lth_fast.masked_conv2d, arguments, test_utils=("test_schema", "test_faketensor"))


IMAGES, WEIGHT = torch.ones(2, 4, 5, 5), torch.ones(4, 4, 3, 2)
BITS = torch.zeros(12, dtype=torch.uint8)
WRONG: dict[str, tuple[tuple[Tensor | None, ...], str]] = {
    "weight of two dimensions": (
        (IMAGES, torch.ones(4, 4), None, BITS),
        r"weight must have 4 dimensions \[out_channels, in_channels / groups, height, width\], got \[4, 4\]",
    ),
    "input of other channels": (
        (torch.ones(2, 3, 5, 5), WEIGHT, None, BITS),
        r"input must have shape \[batch, 4, height, width\] for weight of shape \[4, 4, 3, 2\] and 1 groups, "
        r"got \[2, 3, 5, 5\]",
    ),
    "input without a batch": (
        (IMAGES[0], WEIGHT, None, BITS),
        r"input must have shape \[batch, 4, height, width\] for .*, got \[4, 5, 5\]",
    ),
    "input of five dimensions": (
        (IMAGES[..., None], WEIGHT, None, BITS),
        r"input must have shape \[batch, 4, height, width\] for .*, got \[2, 4, 5, 5, 1\]",
    ),
    "input of another dtype": (
        (IMAGES.double(), WEIGHT, None, BITS),
        r"input must have the dtype of weight \(Float\), got Double",
    ),
    "complex weight": (
        (IMAGES + 1j, WEIGHT + 1j, None, BITS),
        r"weight must be floating point and real, got ComplexFloat",
    ),
    "bias of another length": (
        (IMAGES, WEIGHT, torch.ones(3), BITS),
        r"bias must have shape \[4\], got \[3\]",
    ),
    "bias of two dimensions": (
        (IMAGES, WEIGHT, torch.ones(4, 1), BITS),
        r"bias must have shape \[4\], got \[4, 1\]",
    ),
    "bias of another dtype": (
        (IMAGES, WEIGHT, torch.ones(4).half(), BITS),
        r"bias must have the dtype of weight \(Float\), got Half",
    ),
    "bits of another dtype": (
        (IMAGES, WEIGHT, None, BITS.int()),
        r"mask_bits must be uint8 \(see pack_mask\), got Int",
    ),
    "bits of another length": (
        (IMAGES, WEIGHT, None, BITS[:5]),
        r"mask_bits must have shape \[12\] for weight of shape \[4, 4, 3, 2\], got \[5\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_by_name(case: str, call: Callable[..., Tensor]) -> None:
    arguments, complaint = WRONG[case]
    with pytest.raises(RuntimeError, match=f"masked_conv2d: {complaint}"):
        call(masked_conv2d, *arguments)


def test_tensors_on_different_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"input must be on the device of weight \(cpu\), got meta"):
        masked_conv2d(IMAGES.to("meta"), WEIGHT, None, BITS)
    with pytest.raises(RuntimeError, match=r"mask_bits must be on the device of weight \(cpu\), got meta"):
        masked_conv2d(IMAGES, WEIGHT, None, BITS.to("meta"))
