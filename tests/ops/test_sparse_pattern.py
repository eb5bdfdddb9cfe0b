"""sparse_pattern: the survivors of a mask in row order and in column order."""

from __future__ import annotations

import pytest
import torch

from lth_fast.ops import SparsePattern, sparse_pattern
from lth_fast.ops.sparse_pattern import coordinates, reference

SHAPES = [(1, 1), (1, 700), (700, 1), (37, 301), (300, 784), (1000, 1030)]


def draw_mask(shape: tuple[int, int], density: float, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def walk_rows(pattern: SparsePattern) -> list[tuple[int, int]]:
    """(row, column) of every survivor, read panel by panel as the kernels do, then sorted."""
    starts, columns = pattern.row_starts.tolist(), pattern.columns.tolist()
    found = [
        (row, columns[place], place)
        for panel in range(len(starts) - 1)
        for row in range(len(starts[0]))
        for place in range(starts[panel][row], starts[panel + 1][row])
    ]
    found.sort(key=lambda item: item[2])
    return [(row, column) for row, column, _ in found]


def walk_columns(pattern: SparsePattern) -> list[tuple[int, int, int]]:
    """(row, column, position in row order) of every survivor, in column order."""
    rows, permutation = pattern.rows.tolist(), pattern.permutation.tolist()
    return [
        (rows[place], column, permutation[place])
        for starts in pattern.column_starts.tolist()
        for column in range(len(starts) - 1)
        for place in range(starts[column], starts[column + 1])
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
class TestBothOrders:
    def test_row_order_is_the_row_major_order_of_the_mask(self, shape, density):
        mask = draw_mask(shape, density, seed=shape[1])
        assert walk_rows(sparse_pattern(mask)) == [tuple(place) for place in mask.nonzero().tolist()]

    def test_column_order_visits_every_survivor_once_and_knows_its_place_in_row_order(self, shape, density):
        mask = draw_mask(shape, density, seed=shape[0])
        in_row_order = mask.nonzero().tolist()
        found = walk_columns(sparse_pattern(mask))
        assert sorted(place for _, _, place in found) == list(range(len(in_row_order)))
        assert all(in_row_order[place] == [row, column] for row, column, place in found)

    def test_rows_ascend_within_a_column_across_its_panels(self, shape, density):
        rows_of_column: dict[int, list[int]] = {}
        for row, column, _ in walk_columns(sparse_pattern(draw_mask(shape, density, seed=7))):
            rows_of_column.setdefault(column, []).append(row)
        assert all(rows == sorted(rows) for rows in rows_of_column.values())

    def test_coordinates_index_the_dense_mask(self, shape, density):
        mask = draw_mask(shape, density, seed=5)
        for pattern in (sparse_pattern(mask), reference(mask)):
            assert torch.equal(torch.zeros_like(mask).index_put(coordinates(pattern), torch.tensor(True)), mask)


def test_one_panel_gives_exactly_the_reference():
    mask = draw_mask((40, 50), 0.3, seed=0)
    for built, expected in zip(sparse_pattern(mask), reference(mask), strict=True):
        assert built.dtype == expected.dtype
        assert torch.equal(built.int(), expected.int())


def test_a_wide_dense_enough_mask_is_cut_into_panels_that_cover_it_in_order():
    starts = sparse_pattern(draw_mask((64, 4608), 0.2, seed=1)).row_starts
    assert starts.shape[0] > 2
    assert (starts.diff(dim=0) >= 0).all()


def test_16_bit_numbers_are_used_up_to_65536_features_and_32_bit_above():
    for features, dtype in [(65536, torch.uint16), (65537, torch.int32)]:
        mask = torch.zeros(2, features, dtype=torch.bool)
        mask[0, features - 1] = mask[1, 3] = True
        wide, tall = sparse_pattern(mask), sparse_pattern(mask.t())
        assert wide.columns.dtype == tall.rows.dtype == dtype
        assert wide.columns.int().tolist() == [features - 1, 3]
        assert tall.rows.int().tolist() == [3, features - 1][::-1]


def test_a_transposed_mask_is_read_by_its_logical_order():
    mask = draw_mask((30, 20), 0.4, seed=2)
    for built, expected in zip(sparse_pattern(mask.t()), sparse_pattern(mask.t().contiguous()), strict=True):
        assert torch.equal(built.int(), expected.int())


def test_the_pattern_does_not_depend_on_the_number_of_threads(threads):
    mask = draw_mask((1500, 2000), 0.1, seed=3)
    threads(1)
    alone = sparse_pattern(mask)
    threads(2)
    for one, two in zip(alone, sparse_pattern(mask), strict=True):
        assert torch.equal(one.int(), two.int())


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(RuntimeError, match="mask must be bool, got Float"):
        sparse_pattern(torch.ones(3, 4))


def test_a_mask_without_two_dimensions_is_refused():
    with pytest.raises(RuntimeError, match=r"mask must have 2 dimensions .* got \[2, 3, 4\]"):
        sparse_pattern(torch.ones(2, 3, 4, dtype=torch.bool))


def test_opcheck_accepts_the_operator():
    torch.library.opcheck(torch.ops.lth_fast.sparse_pattern.default, (draw_mask((5, 9), 0.4, seed=4),))
