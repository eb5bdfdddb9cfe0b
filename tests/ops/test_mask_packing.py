from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lth_fast.ops import pack_mask, unpack_mask
from lth_fast.ops.mask_packing import reference_pack_mask, reference_unpack_mask

# Every remainder of eight and of the vector widths, and more weights than one task of the thread pool takes.
SIZES = [*range(71), 4_099, 131_071, 131_073, 300_007]


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


@pytest.mark.usefixtures("kernels")
def test_packing_is_as_defined_for_every_size() -> None:
    for size in SIZES:
        mask = random_mask(size)
        bits = pack_mask(mask)
        assert bits.dtype == torch.uint8
        assert bits.tolist() == reference_pack_mask(mask).tolist(), size


@pytest.mark.usefixtures("kernels")
def test_unpacking_is_as_defined_for_every_size() -> None:
    for size in SIZES:
        bits = torch.randint(0, 256, (-(-size // 8),), dtype=torch.uint8)
        mask = unpack_mask(bits, (size,))
        assert mask.dtype == torch.bool
        assert torch.equal(mask, reference_unpack_mask(bits, (size,))), size
        assert set(mask.view(torch.uint8).tolist()) <= {0, 1}


@pytest.mark.usefixtures("kernels")
def test_unpacking_is_the_inverse_of_packing_in_every_shape() -> None:
    for shape in [(), (1,), (0, 3), (7, 9), (2, 3, 5, 7), (300, 784)]:
        mask = random_mask(*shape)
        assert torch.equal(unpack_mask(pack_mask(mask), shape), mask), shape


def test_numpy_packs_the_same_bits() -> None:
    mask = random_mask(1_003)
    assert pack_mask(mask).tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()


@pytest.mark.usefixtures("kernels")
def test_bits_behind_the_last_weight_are_zero() -> None:
    for size in range(1, 8):
        assert pack_mask(torch.ones(size, dtype=torch.bool)).tolist() == [2**size - 1]


@pytest.mark.usefixtures("kernels")
def test_a_bool_of_any_byte_but_zero_is_true() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)[torch.randperm(256)]
    for size in (256, 250):
        mask = bytes_[:size].view(torch.bool)
        assert torch.equal(unpack_mask(pack_mask(mask), (size,)), bytes_[:size] != 0)


@pytest.mark.parametrize("size", [131_073, 300_007])
def test_the_bits_do_not_depend_on_the_number_of_threads(
    size: int, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    mask = random_mask(size)
    bits = on_threads(1, lambda: pack_mask(mask))
    assert torch.equal(on_threads(2, lambda: pack_mask(mask)), bits)
    assert torch.equal(on_threads(2, lambda: unpack_mask(bits, (size,))), mask)


@pytest.mark.parametrize(
    "mask",
    [
        (torch.rand(7, 9) > 0.5).t(),
        (torch.rand(7, 18) > 0.5)[:, ::2],
        (torch.rand(2, 3, 5, 5) > 0.5).to(memory_format=torch.channels_last),
        (torch.rand(9) > 0.5).expand(7, 9),
    ],
    ids=["transposed", "strided", "channels last", "expanded"],
)
def test_bits_stand_in_flat_index_order_whatever_the_memory_layout(mask: Tensor) -> None:
    assert torch.equal(pack_mask(mask), pack_mask(mask.clone(memory_format=torch.contiguous_format)))


def test_packing_works_in_inference_mode() -> None:
    mask = random_mask(33)
    with torch.inference_mode():
        assert torch.equal(unpack_mask(pack_mask(mask), (33,)), mask)


def test_shapes_are_known_without_values() -> None:
    bits = pack_mask(torch.ones(3, 7, dtype=torch.bool, device="meta"))
    assert (bits.shape, bits.dtype) == ((3,), torch.uint8)
    assert unpack_mask(bits, (3, 7)).shape == (3, 7)


def test_the_registrations_are_consistent() -> None:
    mask = random_mask(3, 7)
    torch.library.opcheck(torch.ops.lth_fast.pack_mask, (mask,))
    torch.library.opcheck(torch.ops.lth_fast.unpack_mask, (pack_mask(mask), mask.shape))


@pytest.mark.parametrize("pack", [pack_mask, reference_pack_mask])
def test_a_mask_that_is_not_bool_is_refused(pack: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"pack_mask: mask must be bool, got (Float|torch\.float32)"):
        pack(torch.ones(3))


@pytest.mark.parametrize("unpack", [unpack_mask, reference_unpack_mask])
@pytest.mark.parametrize(
    ("bits", "complaint"),
    [
        (torch.zeros(3), r"bits must be uint8.*got .*[Ff]loat"),
        (torch.zeros(2, dtype=torch.uint8), r"bits must .*shape \[3\].*got .*\[2\]"),
        (torch.zeros(3, 1, dtype=torch.uint8), r"bits must .*shape \[3\].*got .*\[3, 1\]"),
    ],
    ids=["dtype", "length", "dimensions"],
)
def test_bits_that_do_not_fit_the_shape_are_refused(
    unpack: Callable[..., Tensor], bits: Tensor, complaint: str
) -> None:
    with pytest.raises(RuntimeError, match=f"unpack_mask: {complaint}"):
        unpack(bits, (4, 5))


def test_bits_with_gaps_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"unpack_mask: bits must be contiguous, got strides \[2\]"):
        unpack_mask(torch.zeros(6, dtype=torch.uint8)[::2], (20,))
