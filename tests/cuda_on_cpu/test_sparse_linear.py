from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lth_fast.ops import SparsePattern, sparse_pattern
from lth_fast.ops.sparse_linear import from_dense, to_dense
from lth_fast.ops.sparse_pattern import reference


class SparseLines(ctypes.Structure):
    _fields_ = (
        ("starts", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("panels", ctypes.c_int64),
        ("lines", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("panel_width", ctypes.c_int64),
        ("indices", ctypes.c_void_p),
    )


def address(tensor: Tensor, first: int = 0) -> ctypes.c_void_p:
    """Where element 0 would be if the tensor began with element ``first``."""
    return ctypes.c_void_p(tensor.data_ptr() - first * tensor.element_size())


def run(
    layer: Callable[..., None], pattern: SparsePattern, tensors: tuple[Tensor, ...], samples: int, first: int = 0
) -> None:
    """The numbers of the survivors begin with ``first``."""
    values, values_by_column, *others, grad_values = tensors
    row_starts, column_starts = pattern.row_starts + first, pattern.column_starts + first
    by_row, by_column = pattern.row_order.argsort(dim=1).int(), pattern.column_order.argsort(dim=1).int()

    def lines_of(starts: Tensor, places: Tensor, indices: Tensor, features: int) -> SparseLines:
        (panels, lines), width = places.shape, -(-features // places.shape[0])
        return SparseLines(address(starts), address(places), panels, lines, features, width, address(indices, first))

    layer(
        ctypes.byref(lines_of(row_starts, by_row, pattern.columns, by_column.shape[1])),
        ctypes.byref(lines_of(column_starts, by_column, pattern.rows, by_row.shape[1])),
        *(address(tensor, first) for tensor in (values, values_by_column)),
        *map(address, others),
        address(grad_values, first),
        ctypes.c_int64(samples),
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 31, 128, 133])
@pytest.mark.parametrize("features", [(1, 1), (33, 21), (1300, 9), (9, 1300)], ids=str)
@pytest.mark.parametrize("several_panels", [True, False])
def test_output_and_gradients_are_those_of_the_dense_layer(
    kernels: ctypes.CDLL, features: tuple[int, int], samples: int, dtype: torch.dtype, several_panels: bool
) -> None:
    assert_like_a_dense_layer(kernels, features, samples, dtype, several_panels, density=0.3)


@pytest.mark.parametrize("density", [0.0, 0.003, 1.0])
def test_every_density_agrees(kernels: ctypes.CDLL, density: float) -> None:
    assert_like_a_dense_layer(kernels, (300, 70), 65, torch.float32, True, density)


@pytest.mark.parametrize("features", [(9000, 20), (20, 9000)], ids=str)
def test_long_sums_agree(kernels: ctypes.CDLL, features: tuple[int, int]) -> None:
    assert_like_a_dense_layer(kernels, features, 33, torch.float32, True, density=1.0)


def test_a_grid_of_large_blocks_agrees(kernels: ctypes.CDLL) -> None:
    assert_like_a_dense_layer(kernels, (3, 2050), 1030, torch.float32, False, density=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_smallest_devices_have_memory_enough_and_the_same_bits(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    # Full tiles, and blocks enough for the largest ones.
    mask, samples = torch.rand(5, 400) < 0.1, 64 * 256
    pattern = reference(mask, panels=(1, 1))
    values, input = torch.randn(int(mask.sum()), dtype=dtype), torch.randn(400, samples, dtype=dtype)
    places, columns = pattern.row_order.argsort(dim=1).int(), pattern.columns.int()
    rows = SparseLines(*map(address, (pattern.row_starts, places)), 1, 5, 400, 400, address(columns))
    outputs = []
    for memory in (227 << 10, 99 << 10):
        outputs.append(torch.full((5, samples), torch.nan, dtype=dtype))
        kernels.set_memory_of_a_block(ctypes.c_int64(memory))
        try:
            product = kernels.product_float if dtype == torch.float32 else kernels.product_double
            product(ctypes.byref(rows), *map(address, (values, input, outputs[-1])), ctypes.c_int64(samples))
        finally:
            kernels.set_memory_of_a_block(ctypes.c_int64(227 << 10))
    assert relative_error(outputs[0], to_dense(values, pattern).double() @ input.double()) <= 1e-6
    assert torch.equal(*outputs)


def test_what_no_survivor_reads_may_be_nan(kernels: ctypes.CDLL) -> None:
    pattern = sparse_pattern(torch.rand(37, 900) < 0.01)
    read_forward, read_backward = torch.zeros(900), torch.zeros(37)
    read_forward[pattern.columns.long()] = 1
    read_backward[pattern.rows.long()] = 1
    values = torch.randn(pattern.columns.shape)
    input, grad_output = (
        torch.where(read[:, None] == 1, torch.randn(len(read), 70), torch.nan) for read in (read_forward, read_backward)
    )
    output, grad_input, grad_values = torch.empty(37, 70), torch.empty(900, 70), torch.empty_like(values)
    tensors = (values, values[pattern.permutation.long()], torch.randn(37), input, output, grad_output, grad_input)
    run(kernels.sparse_layer_float_16, pattern, (*tensors, grad_values), samples=70)
    assert input.isnan().any()
    assert all(found.isfinite().all() for found in (output, grad_input, grad_values))


def test_an_order_is_inverted_panel_by_panel(kernels: ctypes.CDLL) -> None:
    order = torch.stack([torch.randperm(700) for _ in range(3)]).int()
    places = torch.full_like(order, -1)
    kernels.invert(*map(address, (order, places)), ctypes.c_int64(3), ctypes.c_int64(700))
    assert torch.equal(places, order.argsort(dim=1).int())


@pytest.mark.parametrize("features", [(3, 2), (2, 3), (70, 1), (1, 70)], ids=str)
def test_the_last_of_as_many_survivors_as_there_may_be_agree(kernels: ctypes.CDLL, features: tuple[int, int]) -> None:
    first = 2**31 - 1 - math.prod(features)
    assert_like_a_dense_layer(kernels, features, 33, torch.float32, False, density=1.0, first=first)


def assert_like_a_dense_layer(
    kernels: ctypes.CDLL,
    features: tuple[int, int],
    samples: int,
    dtype: torch.dtype,
    several_panels: bool,
    density: float,
    first: int = 0,
) -> None:
    mask = torch.rand(features[1], features[0]) < density
    pattern = sparse_pattern(mask) if several_panels else reference(mask, panels=(1, 1))
    if dtype == torch.float64:
        pattern = pattern._replace(columns=pattern.columns.int(), rows=pattern.rows.int())
    values, bias = torch.randn(int(mask.sum()), dtype=dtype), torch.randn(features[1], dtype=dtype)
    # As the kernels take them: [features, samples].
    input, grad_output = torch.randn(features[0], samples, dtype=dtype), torch.randn(features[1], samples, dtype=dtype)
    output, grad_input = torch.full_like(grad_output, torch.nan), torch.full_like(input, torch.nan)
    grad_values = torch.full_like(values, torch.nan)
    layer = kernels.sparse_layer_float_16 if dtype == torch.float32 else kernels.sparse_layer_double_32
    tensors = (values, values[pattern.permutation.long()], bias, input, output, grad_output, grad_input, grad_values)
    run(layer, pattern, tensors, samples, first)
    weight = to_dense(values, pattern).double()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert relative_error(output, weight @ input.double() + bias.double().unsqueeze(1)) <= tolerance
    assert relative_error(grad_input, weight.t() @ grad_output.double()) <= tolerance
    assert relative_error(grad_values, from_dense(grad_output.double() @ input.double().t(), pattern)) <= tolerance


def test_a_survivor_without_samples_gets_a_gradient_of_zero(kernels: ctypes.CDLL) -> None:
    pattern = sparse_pattern(torch.ones(3, 4, dtype=torch.bool))
    grad_values, nothing = torch.full((12,), torch.nan), torch.empty(0)
    tensors = (torch.randn(12), torch.randn(12), torch.randn(3), nothing, nothing, nothing, nothing, grad_values)
    run(kernels.sparse_layer_float_16, pattern, tensors, samples=0)
    assert grad_values.tolist() == [0.0] * 12
