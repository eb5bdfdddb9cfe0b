from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lth_fast.ops import masked_apply, masked_apply_, masked_apply_each_, pack_mask, prune_by_magnitude
from lth_fast.ops.masked_apply import _reference_in_place, _reference_of_each, reference

SIZES = [*range(71), 4_099, 131_073, 300_007]
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGER = [torch.int16, torch.int32, torch.int64]
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


def random_values(size: int, dtype: torch.dtype) -> Tensor:
    """Any bit pattern: NaN with all payloads, infinities, denormals, both zeros."""
    width = dtype.itemsize
    return torch.randint(0, 256, (size * width,), dtype=torch.uint8).view(dtype)


def bit_pattern(tensor: Tensor) -> Tensor:
    return tensor.view(BITS_OF[tensor.dtype.itemsize])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", FLOATING + INTEGER, ids=str)
def test_survivors_keep_their_bits_and_all_else_becomes_plus_zero(dtype: torch.dtype) -> None:
    for size in SIZES:
        values, mask = random_values(size, dtype), random_mask(size)
        out = masked_apply(values, pack_mask(mask))
        assert out.dtype == dtype
        assert torch.equal(bit_pattern(out), bit_pattern(values) * mask), size
        in_place = values.clone()
        masked_apply_(in_place, pack_mask(mask))
        assert torch.equal(bit_pattern(in_place), bit_pattern(out)), size


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.0])
def test_not_even_nan_infinity_or_minus_zero_outlives_pruning(dtype: torch.dtype, value: float) -> None:
    out = masked_apply(torch.full((13,), value, dtype=dtype), pack_mask(torch.zeros(13, dtype=torch.bool)))
    assert bit_pattern(out).tolist() == [0] * 13


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_the_reference_says_the_same(dtype: torch.dtype) -> None:
    for size in SIZES:
        values, bits = random_values(size, dtype), pack_mask(random_mask(size))
        expected = reference(values, bits)
        assert torch.equal(bit_pattern(masked_apply(values, bits)), bit_pattern(expected)), size
        _reference_in_place(values, bits)
        assert torch.equal(bit_pattern(values), bit_pattern(expected)), size


def test_the_bits_do_not_depend_on_the_number_of_threads(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
) -> None:
    values, bits = torch.randn(300_007), pack_mask(random_mask(300_007))
    one = on_threads(1, lambda: masked_apply(values, bits))
    assert torch.equal(on_threads(2, lambda: masked_apply(values, bits)), one)
    assert torch.equal(on_threads(2, lambda: masked_apply_(values, bits)), one)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(7, 9).t(),
    "strided": lambda: torch.randn(7, 18)[:, ::2],
    "offset": lambda: torch.randn(65)[2:],
    "channels last": lambda: torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
    "channels last of one channel": lambda: torch.empty_strided((4, 1, 3, 3), (9, 1, 3, 1)).normal_(),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_counts_in_flat_index_order_whatever_the_memory_layout(layout: str) -> None:
    values = LAYOUTS[layout]()
    mask = random_mask(*values.shape)
    out = masked_apply(values, pack_mask(mask))
    assert torch.equal(out, values * mask)
    assert out.is_contiguous()
    strides, expected = values.stride(), values * mask
    assert torch.equal(masked_apply_(values, pack_mask(mask)), expected)
    assert values.stride() == strides


def list_of_every_kind() -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of every dtype, layout and of many sizes, and their masks."""
    tensors = [random_values(size, dtype) for size in (0, 1, 9, 5_000) for dtype in FLOATING + INTEGER]
    tensors += [make() for make in LAYOUTS.values()] + [torch.randn(3) for _ in range(200)]
    return tensors, [random_mask(*tensor.shape) for tensor in tensors]


@pytest.mark.usefixtures("kernels")
def test_a_list_is_masked_as_its_tensors_one_by_one() -> None:
    tensors, masks = list_of_every_kind()
    bits = [pack_mask(mask) for mask in masks]
    expected = [masked_apply(tensor, own) for tensor, own in zip(tensors, bits, strict=True)]
    by_reference = [tensor.clone() for tensor in tensors]
    _reference_of_each(by_reference, bits)
    versions = [tensor._version for tensor in tensors]
    masked_apply_each_(tensors, bits)
    for tensor, version, *like in zip(tensors, versions, expected, by_reference, strict=True):
        assert tensor._version == version + 1
        for other in like:
            assert torch.equal(bit_pattern(tensor.contiguous()), bit_pattern(other.contiguous()))
    masked_apply_each_([], [])


def test_a_list_that_does_not_fit_its_masks_is_refused() -> None:
    tensors, bits = [torch.randn(9), torch.randn(3)], [pack_mask(random_mask(9)), pack_mask(random_mask(3))]
    with pytest.raises(RuntimeError, match=r"mask_bits must hold one entry per tensor \(2\), got 1"):
        masked_apply_each_(tensors, bits[:1])
    with pytest.raises(RuntimeError, match=r"mask_bits must have shape \[2\] for its tensor of shape \[9\], got \[1\]"):
        masked_apply_each_(tensors, bits[::-1])
    with pytest.raises(RuntimeError, match=r"each of the tensors must have elements of 2, 4 or 8 bytes .*, got Bool"):
        masked_apply_each_([random_mask(3)], bits[1:])


@pytest.mark.usefixtures("kernels")
def test_an_expanded_tensor_is_read_but_not_written() -> None:
    values, mask = torch.randn(9).expand(7, 9), random_mask(7, 9)
    assert torch.equal(masked_apply(values, pack_mask(mask)), values * mask)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        masked_apply_(values, pack_mask(mask))


@pytest.mark.usefixtures("kernels")
def test_the_result_is_a_tensor_of_its_own_also_when_nothing_is_pruned() -> None:
    values = torch.randn(16)
    before = values.clone()
    masked_apply(values, pack_mask(torch.ones(16, dtype=torch.bool))).fill_(7.0)
    assert torch.equal(values, before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", ["offset", "transposed"])
def test_a_write_in_place_advances_the_version_counter(layout: str) -> None:
    values = LAYOUTS[layout]()
    version = values._version
    assert masked_apply_(values, pack_mask(random_mask(*values.shape))) is values
    assert values._version == version + 1


def test_a_write_in_place_invalidates_what_autograd_saved() -> None:
    weight = torch.randn(5, requires_grad=True)
    loss = (weight * weight).sum()
    masked_apply_(weight, pack_mask(random_mask(5)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_parameter_may_be_written_in_place() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    mask = random_mask(5)
    masked_apply_(weight, pack_mask(mask))
    assert weight.requires_grad
    assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize("layout", ["offset", "transposed"])
def test_inference_tensors_may_be_written_in_place(layout: str) -> None:
    with torch.inference_mode():
        values = LAYOUTS[layout]()
    mask = random_mask(*values.shape)
    expected = values * mask
    assert torch.equal(masked_apply_(values, pack_mask(mask)), expected)


def test_the_gradient_is_exactly_zero_where_the_mask_prunes() -> None:
    values, mask = torch.randn(4, 9, requires_grad=True), random_mask(4, 9)
    gradient = torch.full((9, 4), float("nan")).t()
    masked_apply(values, pack_mask(mask)).backward(gradient)
    assert values.grad is not None
    assert torch.equal(values.grad.isnan(), mask)
    assert torch.equal(values.grad[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.usefixtures("kernels")
def test_first_and_second_derivatives_agree_with_finite_differences() -> None:
    bits = pack_mask(random_mask(3, 5))
    values = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: masked_apply(v, bits).sin(), (values,))
    assert torch.autograd.gradgradcheck(lambda v: masked_apply(v, bits).sin(), (values,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_registrations_agree_on_the_memory_layout(layout: str) -> None:
    arguments = (values := LAYOUTS[layout](), pack_mask(random_mask(*values.shape)))
    for op in (torch.ops.lth_fast.masked_apply, torch.ops.lth_fast.masked_apply_):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


# torch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_registrations_are_consistent() -> None:
    values, bits = torch.randn(13), pack_mask(random_mask(13))
    torch.library.opcheck(torch.ops.lth_fast.masked_apply, (values.clone().requires_grad_(), bits))
    torch.library.opcheck(torch.ops.lth_fast.masked_apply_, (values, bits))
    torch.library.opcheck(torch.ops.lth_fast.masked_apply_each_, ([values, values.clone()], [bits, bits]))


@pytest.mark.parametrize(("op", "argument"), [(masked_apply, "input"), (masked_apply_, "tensor")])
@pytest.mark.parametrize(
    ("bits", "complaint"),
    [
        (torch.zeros(2, dtype=torch.int32), r"mask_bits must be uint8 \(see pack_mask\), got Int"),
        (torch.zeros(1, dtype=torch.uint8), r"mask_bits must have shape \[2\] for {} of shape \[3, 5\], got \[1\]"),
        (torch.zeros(2, 1, dtype=torch.uint8), r"mask_bits must have shape \[2\] .* got \[2, 1\]"),
        (torch.zeros(4, dtype=torch.uint8)[::2], r"mask_bits must be contiguous, got strides \[2\]"),
    ],
    ids=["dtype", "length", "dimensions", "gaps"],
)
def test_bits_that_do_not_fit_are_refused(
    op: Callable[..., Tensor], argument: str, bits: Tensor, complaint: str
) -> None:
    with pytest.raises(RuntimeError, match=f"{op.__name__}: {complaint.format(argument)}"):
        op(torch.randn(3, 5), bits)


@pytest.mark.parametrize(("op", "argument"), [(masked_apply, "input"), (masked_apply_, "tensor")])
@pytest.mark.parametrize(
    ("dtype", "given"), [(torch.uint8, "Byte"), (torch.bool, "Bool"), (torch.complex128, "ComplexDouble")], ids=str
)
def test_elements_of_other_sizes_are_refused(
    op: Callable[..., Tensor], argument: str, dtype: torch.dtype, given: str
) -> None:
    with pytest.raises(
        RuntimeError, match=f"{op.__name__}: {argument} must have elements of 2, 4 or 8 .*, got {given}"
    ):
        op(torch.zeros(3, dtype=dtype), pack_mask(random_mask(3)))


def test_a_call_on_the_meta_device_and_another_one_is_refused_not_taken_for_one_without_values() -> None:
    bits, there = pack_mask(torch.ones(4, dtype=torch.bool)), "expected all tensors on one device, got cpu and meta"
    with pytest.raises(RuntimeError, match=f"masked_apply: {there}"):
        masked_apply(torch.ones(4), bits.to("meta"))
    with pytest.raises(RuntimeError, match=f"masked_apply_: {there}"):
        masked_apply_(torch.ones(4), bits.to("meta"))
    with pytest.raises(RuntimeError, match=f"masked_apply_each_: {there}"):
        masked_apply_each_([torch.ones(4), torch.ones(4)], [bits, bits.to("meta")])
    with pytest.raises(RuntimeError, match=f"prune_by_magnitude: {there}"):
        prune_by_magnitude([torch.ones(4)], 1, [torch.ones(4, dtype=torch.bool, device="meta")])
