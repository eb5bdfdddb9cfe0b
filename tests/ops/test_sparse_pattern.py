from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lth_fast.ops import SparsePattern, sparse_pattern
from lth_fast.ops.sparse_pattern import coordinates, reference

SHAPES = [(1, 1), (1, 700), (700, 1), (37, 301), (250, 260)]


def random_mask(shape: tuple[int, int], density: float) -> Tensor:
    return torch.rand(shape) < density


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
    def test_row_order_is_the_row_major_order_of_the_mask(self, shape: tuple[int, int], density: float) -> None:
        mask = random_mask(shape, density)
        assert walk_rows(sparse_pattern(mask)) == [tuple(place) for place in mask.nonzero().tolist()]

    def test_column_order_visits_every_survivor_once_and_knows_its_place_in_row_order(
        self, shape: tuple[int, int], density: float
    ) -> None:
        mask = random_mask(shape, density)
        in_row_order = mask.nonzero().tolist()
        found = walk_columns(sparse_pattern(mask))
        assert sorted(place for _, _, place in found) == list(range(len(in_row_order)))
        assert all(in_row_order[place] == [row, column] for row, column, place in found)

    def test_rows_ascend_within_a_column_across_its_panels(self, shape: tuple[int, int], density: float) -> None:
        rows_of_column: dict[int, list[int]] = {}
        for row, column, _ in walk_columns(sparse_pattern(random_mask(shape, density))):
            rows_of_column.setdefault(column, []).append(row)
        assert all(rows == sorted(rows) for rows in rows_of_column.values())

    def test_coordinates_index_the_dense_mask(self, shape: tuple[int, int], density: float) -> None:
        mask = random_mask(shape, density)
        for pattern in (sparse_pattern(mask), reference(mask)):
            assert torch.equal(torch.zeros_like(mask).index_put(coordinates(pattern), torch.tensor(True)), mask)


def test_one_panel_gives_exactly_the_reference() -> None:
    mask = random_mask((40, 50), 0.3)
    for built, expected in zip(sparse_pattern(mask), reference(mask), strict=True):
        assert built.dtype == expected.dtype
        assert torch.equal(built.int(), expected.int())


def test_a_wide_dense_enough_mask_is_cut_into_panels_that_cover_it_in_order() -> None:
    starts = sparse_pattern(random_mask((64, 4608), 0.2)).row_starts
    assert starts.shape[0] > 2
    assert (starts.diff(dim=0) >= 0).all()


def test_16_bit_numbers_are_used_up_to_32768_features_and_32_bit_above() -> None:
    for features, dtype in [(32768, torch.int16), (32769, torch.int32)]:
        mask = torch.zeros(2, features, dtype=torch.bool)
        mask[0, features - 1] = mask[1, 3] = True
        wide, tall = sparse_pattern(mask), sparse_pattern(mask.t())
        assert wide.columns.dtype == tall.rows.dtype == dtype
        assert wide.columns.int().tolist() == [features - 1, 3]
        assert sorted(tall.rows.int().tolist()) == [3, features - 1]


def test_a_transposed_mask_is_read_by_its_logical_order() -> None:
    mask = random_mask((30, 20), 0.4)
    for built, expected in zip(sparse_pattern(mask.t()), sparse_pattern(mask.t().contiguous()), strict=True):
        assert torch.equal(built.int(), expected.int())


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
