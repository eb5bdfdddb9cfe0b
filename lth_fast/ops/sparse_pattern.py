"""Where the survivors of a mask are, in the two orders a sparse layer walks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda


class SparsePattern(NamedTuple):
    """The survivors of a mask ``[out_features, in_features]``, in row order and in column order.

    Row order is not row-major order. The columns are cut into panels, so that what is read at random stays in cache
    while a panel is worked on, and in every panel the rows are visited by their number of survivors, so that the
    processor foresees where the next one begins. Survivors stand in the order of that visit: panel after panel; in it,
    blocks of up to 64 rows; in those, rows from the fewest survivors to the most (the upper one first of two with as
    many); in a row, ascending columns. Column order is the same with rows and columns exchanged.

    Both depend on the mask alone, not on the machine, and stay what they are in later versions: ``values`` stand in row
    order, and so does an optimizer's state in a file.

    Each of ``n`` panels is ``features / n`` wide, rounded up, the last one what is left.

    Attributes:
        row_starts: int32 ``[column panels, out_features + 1]``. The row at place ``i`` of panel ``p`` has the survivors
            from ``row_starts[p, i]`` to ``row_starts[p, i + 1]`` there.
        row_order: int32 ``[column panels, out_features]``, the row at each place.
        columns: int16 (int32 above 32,768 columns) ``[survivors]``, the column of each survivor in row order.
        column_starts: int32 ``[row panels, in_features + 1]``, as ``row_starts``.
        column_order: int32 ``[row panels, in_features]``, the column at each place.
        rows: int16 (int32 above 32,768 rows) ``[survivors]``, the row of each survivor in column order.
        permutation: int32 ``[survivors]``, the position in row order of each survivor in column order.
    """

    row_starts: Tensor
    row_order: Tensor
    columns: Tensor
    column_starts: Tensor
    column_order: Tensor
    rows: Tensor
    permutation: Tensor


def sparse_pattern(mask: Tensor) -> SparsePattern:
    """Find the survivors of ``mask``. Done once per mask; on CUDA it waits for the device, to learn their number.

    Args:
        mask: bool ``[out_features, in_features]``, ``True`` where the weight survives; at most 2**31 - 1 survivors.

    Returns:
        The pattern, on the mask's device.

    Raises:
        RuntimeError: ``mask`` is not as described; the message names expected and given.
    """
    return SparsePattern(*torch.ops.lth_fast.sparse_pattern(mask))


def coordinates(pattern: SparsePattern) -> tuple[Tensor, Tensor]:
    """Row and column of every survivor in row order, int64 ``[survivors]`` each: an index into the dense weight."""
    row = torch.empty_like(pattern.permutation, dtype=torch.int64)
    row[pattern.permutation.long()] = pattern.rows.long()
    return row, pattern.columns.long()


def reference(mask: Tensor, panels: tuple[int, int] | None = None) -> SparsePattern:
    """Definition of :func:`sparse_pattern`; ``panels``, of columns and of rows, are chosen where not given."""
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise RuntimeError(f"sparse_pattern: mask must be bool with 2 dimensions, got {mask.dtype} {list(mask.shape)}")
    if panels is None:
        panels = _number_of_panels(mask.shape[1], mask), _number_of_panels(mask.shape[0], mask)
    row, column = mask.nonzero().unbind(1)
    row_starts, row_order, in_row_order = _arrange(row, column, mask.shape, panels[0])
    column_starts, column_order, in_column_order = _arrange(column, row, mask.shape[::-1], panels[1])
    position = torch.empty_like(in_row_order)
    position[in_row_order] = torch.arange(len(in_row_order), device=mask.device)
    return SparsePattern(
        row_starts,
        row_order,
        column[in_row_order].to(_index_dtype(mask.shape[1])),
        column_starts,
        column_order,
        row[in_column_order].to(_index_dtype(mask.shape[0])),
        position[in_column_order].int(),
    )


def _number_of_panels(features: int, mask: Tensor) -> int:
    """Panels of 128 features, or up to 1,024 where a line would have less than 12 survivors in them."""
    wanted = 12 * mask.numel() // max(int(mask.sum()), 1)
    return max(-(-features // min(max(wanted, 128), 1024)), 1)


def _arrange(line: Tensor, feature: Tensor, shape: Sequence[int], panels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Starts and order of the lines, and the survivors (given in any order) as they stand in this order."""
    lines, width = shape[0], max(-(-shape[1] // panels), 1)
    panel = feature // width
    survivors = torch.bincount(panel * lines + line, minlength=panels * lines).view(panels, lines)
    blocks = 2 * max(-(-lines // 128), 1)  # an even number, of up to 64 lines, in multiples of eight
    block = torch.arange(lines, device=line.device) // max(-(-lines // (8 * blocks)) * 8, 1)
    order = (block * (shape[1] + 1) + survivors).argsort(dim=1, stable=True)
    ends = survivors.gather(1, order).flatten().cumsum(0).view(panels, lines)
    panel_ends = survivors.sum(1).cumsum(0)
    starts = torch.cat([(panel_ends - survivors.sum(1)).unsqueeze(1), ends], dim=1)
    place = order.argsort(dim=1)
    stands = torch.argsort((panel * lines + place[panel, line]) * shape[1] + feature)
    return starts.int(), order.int(), stands


def _index_dtype(features: int) -> torch.dtype:
    return torch.int16 if features <= 32768 else torch.int32


serve_cuda("sparse_pattern", reference)


@torch.library.register_fake("lth_fast::sparse_pattern")
def _(mask: Tensor) -> SparsePattern:
    # How many survivors and panels there are is known when the values are.
    context = torch.library.get_ctx()
    survivors, column_panels, row_panels = (context.new_dynamic_size() for _ in range(3))
    out_features, in_features = mask.shape
    return SparsePattern(
        row_starts=mask.new_empty((column_panels, out_features + 1), dtype=torch.int32),
        row_order=mask.new_empty((column_panels, out_features), dtype=torch.int32),
        columns=mask.new_empty((survivors,), dtype=_index_dtype(in_features)),
        column_starts=mask.new_empty((row_panels, in_features + 1), dtype=torch.int32),
        column_order=mask.new_empty((row_panels, in_features), dtype=torch.int32),
        rows=mask.new_empty((survivors,), dtype=_index_dtype(out_features)),
        permutation=mask.new_empty((survivors,), dtype=torch.int32),
    )
