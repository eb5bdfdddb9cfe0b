from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from lth_fast.ops import masked_apply, pack_mask

SIZES = [1, 7, 8, 9, 255, 256, 257, 2_047, 2_049]
WIDTHS = {16: torch.float16, 32: torch.float32, 64: torch.float64}


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def count(tensor: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(tensor.numel())


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_packed_and_unpacked_as_on_the_cpu(kernels: ctypes.CDLL, size: int) -> None:
    mask = random_mask(size)
    bits = torch.full((-(-size // 8),), 0xAA, dtype=torch.uint8)
    kernels.pack(address(mask), address(bits), count(mask))
    assert torch.equal(bits, pack_mask(mask))
    unpacked = torch.zeros_like(mask)
    kernels.unpack(address(bits), address(unpacked), count(mask))
    assert torch.equal(unpacked, mask)


def test_a_bool_of_any_byte_but_zero_is_true(kernels: ctypes.CDLL) -> None:
    mask = torch.arange(256, dtype=torch.uint8)
    bits = torch.empty(32, dtype=torch.uint8)
    kernels.pack(address(mask), address(bits), count(mask))
    assert torch.equal(bits, pack_mask(mask != 0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0, 1])
def test_survivors_keep_their_bits_and_all_else_becomes_zero_at_any_address(
    kernels: ctypes.CDLL, size: int, width: int, offset: int
) -> None:
    bytes_ = torch.randint(0, 256, ((size + offset) * width // 8,), dtype=torch.uint8)
    values = bytes_.view(WIDTHS[width])[offset:]
    bits = pack_mask(random_mask(size))
    expected = masked_apply(values, bits).view(torch.uint8)
    out = torch.full_like(values, 7.0)
    apply = getattr(kernels, f"apply_{width}")
    apply(address(values), address(bits), address(out), count(values))
    assert torch.equal(out.view(torch.uint8), expected)
    apply(address(values), address(bits), address(values), count(values))
    assert torch.equal(values.view(torch.uint8), expected)


def test_the_mask_counts_in_flat_order_where_channels_lie_innermost(kernels: ctypes.CDLL) -> None:
    weight = torch.randn(6, 5, 3, 4).to(memory_format=torch.channels_last)
    mask = random_mask(6, 5, 3, 4)
    expected = weight * mask
    bits = pack_mask(mask)
    kernels.apply_channels_last(address(weight), address(bits), ctypes.c_int64(5), ctypes.c_int64(3 * 4), count(weight))
    assert torch.equal(weight, expected)


class MaskedTensor(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("area", ctypes.c_int64),
        ("count", ctypes.c_int64),
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_of_any_length_is_masked_as_its_tensors_one_by_one(kernels: ctypes.CDLL, width: int) -> None:
    shapes = [(0,), (1,), (13, 7), (9_001,), *[(5,)] * 300]  # more than one launch holds
    weights = [torch.randn(shape).to(WIDTHS[width]) for shape in shapes]
    weights.append(torch.randn(6, 5, 3, 4).to(WIDTHS[width]).to(memory_format=torch.channels_last))
    masks = [random_mask(*weight.shape) for weight in weights]
    bits = [pack_mask(mask) for mask in masks]
    expected = [torch.where(mask, weight, 0) for weight, mask in zip(weights, masks, strict=True)]
    orders = [(1, 1)] * len(shapes) + [(5, 3 * 4)]
    entries = [
        MaskedTensor(weight.data_ptr(), own.data_ptr(), *order, weight.numel())
        for weight, own, order in zip(weights, bits, orders, strict=True)
    ]
    getattr(kernels, f"apply_each_{width}")((MaskedTensor * len(entries))(*entries), ctypes.c_int64(len(entries)))
    for weight, like in zip(weights, expected, strict=True):
        assert torch.equal(weight, like)
