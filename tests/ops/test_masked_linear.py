from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from lth_fast import _C
from lth_fast.ops import masked_apply, masked_linear, pack_mask
from lth_fast.ops.masked_linear import input_grad_reference, reference, weight_grad_reference

Distance = Callable[[Tensor, Tensor], float]
FEATURES = [(1, 16), (7, 3), (33, 20), (257, 130), (0, 3), (3, 0)]
BATCHES = [(), (1,), (5,), (0,), (2, 3), (2, 0, 3)]


def random_layer(
    in_features: int, out_features: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """A weight that is zero where it is pruned, a bias, and the mask."""
    mask = torch.rand(out_features, in_features) > 0.5
    weight = torch.randn(out_features, in_features, dtype=dtype) * mask
    return weight, torch.randn(out_features, dtype=dtype), mask


def as_leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def assert_as_defined(
    tensors: tuple[Tensor, Tensor, Tensor], bits: Tensor | None, gradient: Tensor, distance: Distance
) -> None:
    """Output, and gradients of input, weight and bias, are those of the reference in float64."""
    single, double = as_leaves(*tensors), as_leaves(*tensors, dtype=torch.float64)
    out, expected = masked_linear(*single, bits), reference(*double, bits)
    assert distance(out, expected) <= 1e-6
    out.backward(gradient)
    expected.backward(gradient.double())
    for tensor, like in zip(single, double, strict=True):
        assert tensor.grad is not None
        assert like.grad is not None
        assert distance(tensor.grad, like.grad) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_output_and_gradients_are_those_of_the_reference(
    features: tuple[int, int], batch: tuple[int, ...], distance: Distance
) -> None:
    weight, bias, mask = random_layer(*features)
    tensors = (torch.randn(*batch, features[0]), weight, bias)
    bits = pack_mask(mask)
    assert_as_defined(tensors, bits, torch.randn(*batch, features[1]), distance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_forward_is_bit_for_bit_the_dense_one(dtype: torch.dtype) -> None:
    weight, bias, mask = random_layer(33, 20, dtype)
    inputs = torch.randn(5, 33, dtype=dtype)
    assert torch.equal(masked_linear(inputs, weight, bias, pack_mask(mask)), linear(inputs, weight, bias))
    assert torch.equal(masked_linear(inputs, weight, None, pack_mask(mask)), linear(inputs, weight))


LARGE = (300, 170)  # with a batch of 32 or more the libraries' own products, not what both leave to the small ones


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", [(32,), (5, 8)], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_large_products_are_those_of_the_reference_by_either_library(
    batch: tuple[int, ...], masked: bool, distance: Distance
) -> None:
    weight, bias, mask = random_layer(*LARGE)
    bits = pack_mask(mask) if masked else None
    tensors = (torch.randn(*batch, LARGE[0]), weight, bias)
    for gradient in (torch.randn(*batch, LARGE[1]), torch.randn(()).expand(*batch, LARGE[1])):
        assert_as_defined(tensors, bits, gradient, distance)


@pytest.mark.usefixtures("library")
def test_large_matrices_may_lie_in_memory_in_any_order(distance: Distance) -> None:
    weight, bias, mask = random_layer(*LARGE)
    inputs = torch.randn(64, LARGE[0])
    for given in (inputs, inputs.t().contiguous().t(), inputs[::2], inputs[:1].expand(64, LARGE[0])):
        for held in (weight, weight.t().contiguous().t(), weight.repeat(2, 1)[::2], weight.repeat(1, 2)[:, ::2]):
            single, double = as_leaves(bias), as_leaves(bias, dtype=torch.float64)
            leaf, double_leaf = given.detach().requires_grad_(), given.detach().double().requires_grad_()
            out = masked_linear(leaf, held, *single, pack_mask(mask))
            expected = linear(double_leaf, held.double(), *double)
            assert distance(out, expected) <= 1e-6
            out.square().sum().backward()
            expected.square().sum().backward()
            assert leaf.grad is not None
            assert double_leaf.grad is not None
            assert distance(leaf.grad, double_leaf.grad) <= 1e-6


@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle")  # torch 2.11
def test_onednn_is_taken_for_large_products_where_it_is_preferred_and_allowed() -> None:
    weight, bias, mask = random_layer(*LARGE)
    bits = pack_mask(mask)

    def products(samples: int) -> list[str]:
        inputs = torch.randn(samples, LARGE[0], requires_grad=True)
        (leaf,) = as_leaves(weight)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            masked_linear(inputs, leaf, bias, bits).sum().backward()
        return [event.name for event in profile.events() if event.name == "mkldnn::_linear_pointwise"]

    previous = _C.prefers_onednn()
    try:
        _C.force_onednn(True)
        assert len(products(32)) == 3  # forward, gradients of input and weight
        assert products(16) == []
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):  # which warns
            assert products(32) == []
        _C.force_onednn(False)
        assert products(32) == []
    finally:
        _C.force_onednn(previous)


def test_without_bits_the_weight_gradient_is_left_as_it_is(distance: Distance) -> None:
    weight, bias, _ = random_layer(33, 20)
    inputs, leaf = as_leaves(torch.randn(5, 33), weight)
    masked_linear(inputs, leaf, bias, None).square().sum().backward()
    expected = as_leaves(inputs, weight, bias, dtype=torch.float64)
    linear(*expected).square().sum().backward()
    assert leaf.grad is not None
    assert expected[1].grad is not None
    assert distance(leaf.grad, expected[1].grad) <= 1e-6


@pytest.mark.parametrize("masked", [True, False])
def test_without_a_bias_the_other_gradients_stay_what_they_are(masked: bool, distance: Distance) -> None:
    weight, _, mask = random_layer(7, 3)
    inputs, weight = as_leaves(torch.randn(5, 7), weight)
    masked_linear(inputs, weight, None, pack_mask(mask) if masked else None).sum().backward()
    assert inputs.grad is not None
    assert weight.grad is not None
    assert distance(inputs.grad, weight.detach().sum(0).expand(5, 7)) <= 1e-6
    whole = inputs.detach().sum(0).expand(3, 7)
    assert distance(weight.grad, whole * mask if masked else whole) <= 1e-6


@pytest.mark.parametrize("wanted", range(3), ids=["input", "weight", "bias"])
def test_a_single_gradient_can_be_asked_for(wanted: int, distance: Distance) -> None:
    weight, bias, mask = random_layer(7, 3)
    tensors = [torch.randn(5, 7), weight, bias]
    expected = as_leaves(*tensors, dtype=torch.float64)
    reference(*expected, pack_mask(mask)).square().sum().backward()
    tensors[wanted].requires_grad_()
    masked_linear(*tensors, pack_mask(mask)).square().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]
    found, like = tensors[wanted].grad, expected[wanted].grad
    assert found is not None
    assert like is not None
    assert distance(found, like) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_weight_gradient_is_exactly_zero_where_pruned_whatever_arrives(value: float) -> None:
    weight, bias, mask = random_layer(33, 20)
    (weight,) = as_leaves(weight)
    masked_linear(torch.ones(5, 33), weight, bias, pack_mask(mask)).backward(torch.full((5, 20), value))
    assert weight.grad is not None
    assert not weight.grad[mask].isfinite().any()
    assert weight.grad[~mask].view(torch.int32).unique().tolist() == [0]


@pytest.mark.usefixtures("kernels")
def test_inputs_and_gradients_may_lie_in_memory_in_any_order(distance: Distance) -> None:
    weight, bias, mask = random_layer(7, 3)
    bits = pack_mask(mask)
    inputs = torch.randn(7, 4, 5).permute(2, 1, 0)
    gradient = torch.randn(3, 4, 5).permute(2, 1, 0)
    for grad_output in (gradient, torch.randn(()).expand(5, 4, 3)):
        single, double = as_leaves(weight.t().contiguous().t(), bias), as_leaves(weight, bias, dtype=torch.float64)
        masked_linear(inputs, *single, bits).backward(grad_output)
        reference(inputs.double(), *double, bits).backward(grad_output.double())
        for tensor, like in zip(single, double, strict=True):
            assert tensor.grad is not None
            assert like.grad is not None
            assert distance(tensor.grad, like.grad) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [(), (2,), (2, 2)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_first_and_second_derivatives_agree_with_finite_differences(batch: tuple[int, ...], with_bias: bool) -> None:
    weight, bias, mask = random_layer(4, 3, torch.float64)
    bits = pack_mask(mask)
    tensors = as_leaves(torch.randn(*batch, 4, dtype=torch.float64), weight, *([bias] if with_bias else []))

    def masked(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # A difference quotient moves pruned weights too, which the operator takes for zero.
        return masked_linear(inputs, masked_apply(weight, bits), bias, bits).sin()

    assert torch.autograd.gradcheck(masked, tensors)
    assert torch.autograd.gradgradcheck(masked, tensors)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("features", "batch"), [((7, 3), 5), (LARGE, 32)], ids=["small", "large"])
def test_second_derivatives_are_those_of_the_reference_and_zero_where_pruned(
    features: tuple[int, int], batch: int, distance: Distance
) -> None:
    weight, bias, mask = random_layer(*features)
    bits = pack_mask(mask)

    def penalty(op: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        inputs, leaf = as_leaves(inputs_, weight, dtype=dtype)
        gradients = torch.autograd.grad(
            op(inputs, leaf, bias.to(dtype), bits).tanh().sum(), (inputs, leaf), create_graph=True
        )
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    inputs_ = torch.randn(batch, features[0])
    found = penalty(masked_linear, torch.float32)
    assert distance(found, penalty(reference, torch.float64)) <= 1e-5
    assert found[~mask].tolist() == [0.0] * int((~mask).sum())


def test_the_bits_do_not_depend_on_the_number_of_threads(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
) -> None:
    # Small whole numbers: their sums are exact in any order, so a difference would come from the mask alone.
    mask = torch.rand(512, 521) > 0.5
    weight = torch.randint(-3, 4, (512, 521)) * mask.float()
    inputs, gradient = torch.randint(-3, 4, (6, 521)).float(), torch.randint(-3, 4, (6, 512)).float()

    def weight_gradient() -> Tensor:
        (leaf,) = as_leaves(weight)
        masked_linear(inputs, leaf, None, pack_mask(mask)).backward(gradient)
        assert leaf.grad is not None
        return leaf.grad

    expected = (gradient.t() @ inputs) * mask
    assert torch.equal(on_threads(1, weight_gradient), expected)
    assert torch.equal(on_threads(2, weight_gradient), expected)


def test_autocast_casts_as_for_a_dense_layer() -> None:
    weight, bias, mask = random_layer(33, 20)
    bits = pack_mask(mask)
    inputs = torch.randn(5, 33)
    ours, dense = as_leaves(inputs, weight, bias), as_leaves(inputs, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = masked_linear(*ours, bits), linear(*dense)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    for (tensor, like), pruning in zip(zip(ours, dense, strict=True), (True, mask, True), strict=True):
        assert tensor.grad is not None
        assert like.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, like.grad * pruning)


def test_the_input_gradient_is_as_defined_for_batches_and_for_one_sample(distance: Distance) -> None:
    weight, _, _ = random_layer(33, 20)
    for gradient in (torch.randn(2, 3, 20), torch.randn(20)):
        native = torch.ops.lth_fast.masked_linear_input_grad(gradient, weight)
        assert distance(input_grad_reference(gradient.double(), weight.double()), native) <= 1e-6


def test_the_weight_gradient_is_as_defined_for_batches_and_for_one_sample(distance: Distance) -> None:
    _, _, mask = random_layer(33, 20)
    bits = pack_mask(mask)
    inputs, gradient = torch.randn(2, 3, 33), torch.randn(2, 3, 20)
    native = torch.ops.lth_fast.masked_linear_weight_grad(gradient, inputs, bits)
    assert distance(weight_grad_reference(gradient, inputs, bits), native) <= 1e-6
    one = torch.ops.lth_fast.masked_linear_weight_grad(gradient[0, 0], inputs[0, 0], bits)
    assert distance(weight_grad_reference(gradient[0, 0], inputs[0, 0], bits), one) <= 1e-6


# torch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_registrations_are_consistent() -> None:
    weight, bias, mask = random_layer(7, 3)
    bits = pack_mask(mask)
    inputs, weight, bias = as_leaves(torch.randn(2, 5, 7), weight, bias)
    torch.library.opcheck(torch.ops.lth_fast.masked_linear, (inputs, weight, bias, bits))
    gradient = torch.randn(2, 5, 3)
    torch.library.opcheck(torch.ops.lth_fast.masked_linear_weight_grad, (gradient, inputs.detach(), bits))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_registrations_agree_on_shapes_and_memory_layout(batch: tuple[int, ...], with_bias: bool) -> None:
    weight, bias, mask = random_layer(7, 3)
    bits, tests = pack_mask(mask), ("test_schema", "test_faketensor")
    for inputs in (torch.randn(*batch, 7), torch.randn(7, *batch[::-1]).permute(*range(len(batch), -1, -1))):
        torch.library.opcheck(
            torch.ops.lth_fast.masked_linear, (inputs, weight, bias if with_bias else None, bits), test_utils=tests
        )
        torch.library.opcheck(
            torch.ops.lth_fast.masked_linear_weight_grad, (torch.randn(*batch, 3), inputs, bits), test_utils=tests
        )
        torch.library.opcheck(
            torch.ops.lth_fast.masked_linear_input_grad, (torch.randn(*batch, 3), weight), test_utils=tests
        )


BITS = torch.zeros(2, dtype=torch.uint8)
WRONG: dict[str, tuple[tuple[Tensor | None, ...], str]] = {
    "weight of one dimension": (
        (torch.ones(4), torch.ones(4), None, BITS),
        r"weight must have 2 dimensions \[out_features, in_features\], got \[4\]",
    ),
    "input of other features": (
        (torch.ones(2, 5), torch.ones(3, 4), None, BITS),
        r"input must have shape \[..., 4\] for weight of shape \[3, 4\], got \[2, 5\]",
    ),
    "input without dimensions": (
        (torch.ones(()), torch.ones(3, 4), None, BITS),
        r"input must have shape \[..., 4\] for weight of shape \[3, 4\], got \[\]",
    ),
    "input of another dtype": (
        (torch.ones(2, 4).double(), torch.ones(3, 4), None, BITS),
        r"input must have the dtype of weight \(Float\), got Double",
    ),
    "complex weight": (
        (torch.ones(2, 4) + 1j, torch.ones(3, 4) + 1j, None, BITS),
        r"weight must be floating point and real, got ComplexFloat",
    ),
    "bias of another length": (
        (torch.ones(2, 4), torch.ones(3, 4), torch.ones(4), BITS),
        r"bias must have shape \[3\], got \[4\]",
    ),
    "bias of two dimensions": (
        (torch.ones(2, 4), torch.ones(3, 4), torch.ones(3, 1), BITS),
        r"bias must have shape \[3\], got \[3, 1\]",
    ),
    "bias of another dtype": (
        (torch.ones(2, 4), torch.ones(3, 4), torch.ones(3).half(), BITS),
        r"bias must have the dtype of weight \(Float\), got Half",
    ),
    "bits of another dtype": (
        (torch.ones(2, 4), torch.ones(3, 4), None, BITS.int()),
        r"mask_bits must be uint8 \(see pack_mask\), got Int",
    ),
    "bits of another length": (
        (torch.ones(2, 4), torch.ones(3, 4), None, BITS[:1]),
        r"mask_bits must have shape \[2\] for weight of shape \[3, 4\], got \[1\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_by_name(case: str, call: Callable[..., Tensor]) -> None:
    arguments, complaint = WRONG[case]
    with pytest.raises(RuntimeError, match=f"masked_linear: {complaint}"):
        call(masked_linear, *arguments)


def test_tensors_on_different_devices_are_refused() -> None:
    weight, bits = torch.ones(3, 4), BITS
    with pytest.raises(RuntimeError, match=r"input must be on the device of weight \(cpu\), got meta"):
        masked_linear(torch.ones(2, 4, device="meta"), weight, None, bits)
    with pytest.raises(RuntimeError, match=r"mask_bits must be on the device of weight \(cpu\), got meta"):
        masked_linear(torch.ones(2, 4), weight, None, bits.to("meta"))
