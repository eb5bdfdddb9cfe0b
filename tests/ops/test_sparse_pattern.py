from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lth_fast.ops import SparsePattern, sparse_pattern
from lth_fast.ops.sparse_pattern import coordinates, reference

# Up to one panel and block of lines, several of both, and what has no weights at all.
SHAPES = [(1, 1), (1, 700), (700, 1), (37, 301), (250, 260), (140, 1100), (3, 0), (0, 3), (0, 0)]
DENSITIES = [0.0, 0.01, 0.3, 1.0]


def random_mask(shape: tuple[int, int], density: float) -> Tensor:
    return torch.rand(shape) < density


def walk(starts: Tensor, order: Tensor, indices: Tensor) -> list[tuple[int, int]]:
    """(line, index) of every survivor in the order in which the kernels visit them."""
    features = indices.tolist()
    return [
        (line, features[survivor])
        for panel_starts, panel_order in zip(starts.tolist(), order.tolist(), strict=True)
        for place, line in enumerate(panel_order)
        for survivor in range(panel_starts[place], panel_starts[place + 1])
    ]


def walk_rows(pattern: SparsePattern) -> list[tuple[int, int]]:
    return walk(pattern.row_starts, pattern.row_order, pattern.columns)


def walk_columns(pattern: SparsePattern) -> list[tuple[int, int]]:
    return walk(pattern.column_starts, pattern.column_order, pattern.rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", DENSITIES)
class TestBothOrders:
    def test_they_are_those_of_the_reference(self, shape: tuple[int, int], density: float) -> None:
        mask = random_mask(shape, density)
        for built, expected in zip(sparse_pattern(mask), reference(mask), strict=True):
            assert built.dtype == expected.dtype
            assert torch.equal(built, expected)

    def test_they_visit_every_survivor_once_in_the_order_of_memory(
        self, shape: tuple[int, int], density: float
    ) -> None:
        mask = random_mask(shape, density)
        pattern = sparse_pattern(mask)
        survivors = [tuple(place) for place in mask.nonzero().tolist()]
        rows_first, columns_first = walk_rows(pattern), walk_columns(pattern)
        assert sorted(rows_first) == survivors
        assert sorted((row, column) for column, row in columns_first) == survivors
        assert [column for _, column in rows_first] == pattern.columns.tolist()
        assert [row for _, row in columns_first] == pattern.rows.tolist()
        places = pattern.permutation.tolist()
        assert [rows_first[place] for place in places] == [(row, column) for column, row in columns_first]

    def test_indices_ascend_within_a_line_across_its_panels(self, shape: tuple[int, int], density: float) -> None:
        pattern = sparse_pattern(random_mask(shape, density))
        for walked in (walk_rows(pattern), walk_columns(pattern)):
            of_line: dict[int, list[int]] = {}
            for line, index in walked:
                of_line.setdefault(line, []).append(index)
            assert all(indices == sorted(indices) for indices in of_line.values())

    def test_coordinates_index_the_dense_mask(self, shape: tuple[int, int], density: float) -> None:
        mask = random_mask(shape, density)
        for pattern in (sparse_pattern(mask), reference(mask)):
            assert torch.equal(torch.zeros_like(mask).index_put(coordinates(pattern), torch.tensor(True)), mask)


def test_a_wide_dense_enough_mask_is_cut_into_panels() -> None:
    assert sparse_pattern(random_mask((64, 4608), 0.2)).row_order.shape == (36, 64)


def test_lines_are_visited_in_blocks_from_the_fewest_survivors_to_the_most() -> None:
    pattern = sparse_pattern(random_mask((300, 1024), 0.2))
    for starts, order in zip(pattern.row_starts, pattern.row_order, strict=True):
        for first in range(0, 300, 56):  # an even number of blocks, of a multiple of eight rows
            block = order[first : first + 56]
            assert block.sort().values.tolist() == list(range(first, first + len(block)))
            survivors = starts.diff()[first : first + 56].tolist()
            keys = list(zip(survivors, block.tolist(), strict=True))
            assert keys == sorted(keys)


def test_the_order_of_a_small_mask_stays_what_it_was_in_earlier_versions() -> None:
    # Optimizers' states in files follow it.
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    pattern = sparse_pattern(mask)
    assert walk_rows(pattern) == [(1, 2), (3, 0), (2, 1), (2, 2), (0, 0), (0, 1), (0, 3)]
    wide = torch.zeros(2, 300, dtype=torch.bool)
    wide[0, ::3], wide[1, 1::2] = True, True
    rows, columns = coordinates(sparse_pattern(wide))
    middle = int((columns < 100).logical_and(rows == 0).sum())
    assert sparse_pattern(wide).row_order.tolist() == [[0, 1]] * 3
    assert rows[:middle].tolist() == [0] * middle
    assert columns[:middle].tolist() == list(range(0, 100, 3))
    assert columns[middle : middle + 50].tolist() == list(range(1, 100, 2))


def test_16_bit_numbers_are_used_up_to_32768_features_and_32_bit_above() -> None:
    for features, dtype in [(32768, torch.int16), (32769, torch.int32)]:
        mask = torch.zeros(2, features, dtype=torch.bool)
        mask[0, features - 1] = mask[1, 3] = True
        wide, tall = sparse_pattern(mask), sparse_pattern(mask.t())
        assert wide.columns.dtype == tall.rows.dtype == dtype
        assert wide.columns.int().tolist() == tall.rows.int().tolist() == [3, features - 1]


def test_a_transposed_mask_is_read_by_its_logical_order() -> None:
    mask = random_mask((30, 20), 0.4)
    for built, expected in zip(sparse_pattern(mask.t()), sparse_pattern(mask.t().contiguous()), strict=True):
        assert torch.equal(built.int(), expected.int())


def test_a_bool_of_any_byte_but_zero_is_a_survivor() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)[torch.randperm(256)].view(2, 128)
    for built, expected in zip(sparse_pattern(bytes_.view(torch.bool)), sparse_pattern(bytes_ != 0), strict=True):
        assert torch.equal(built, expected)


def test_the_pattern_does_not_depend_on_the_number_of_threads(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
) -> None:
    mask = random_mask((1500, 2000), 0.1)

    def everything() -> Tensor:
        return torch.cat([part.int().flatten() for part in sparse_pattern(mask)])

    assert torch.equal(on_threads(1, everything), on_threads(2, everything))


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(RuntimeError, match="mask must be bool, got Float"):
        sparse_pattern(torch.ones(3, 4))


def test_a_mask_without_two_dimensions_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"mask must have 2 dimensions .* got \[2, 3, 4\]"):
        sparse_pattern(torch.ones(2, 3, 4, dtype=torch.bool))


def test_opcheck_accepts_the_operator() -> None:
    torch.library.opcheck(torch.ops.lth_fast.sparse_pattern.default, (random_mask((5, 9), 0.4),))
