"""Where the survivors of a mask are, in the two orders a sparse layer walks them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda


class SparsePattern(NamedTuple):
    """The survivors of a mask ``[out_features, in_features]``, in row order and in column order.

    Both orders are cut into panels, whose width follows the machine's caches and the density: what is read at random
    stays in cache while a panel is worked on. Each of ``n`` panels is ``features / n`` wide, rounded up, the last one
    what is left. In row order the survivors of a row lie side by side, panel after panel: row ``r`` has those from
    ``row_starts[p, r]`` to ``row_starts[p + 1, r]`` in column panel ``p``. In column order the survivors of a panel of
    rows lie side by side, column after column: column ``c`` has those from ``column_starts[p, c]`` to
    ``column_starts[p, c + 1]`` in row panel ``p``.

    Attributes:
        row_starts: int32 ``[column panels + 1, out_features]``, positions in row order.
        columns: int16 (int32 above 32,768 columns) ``[survivors]``, the column of each survivor in row order.
        column_starts: int32 ``[row panels, in_features + 1]``, positions in column order.
        rows: int16 (int32 above 32,768 rows) ``[survivors]``, the row of each survivor in column order.
        permutation: int32 ``[survivors]``, the position in row order of each survivor in column order.
    """

    row_starts: Tensor
    columns: Tensor
    column_starts: Tensor
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


def reference(mask: Tensor) -> SparsePattern:
    """Definition of :func:`sparse_pattern`, with one panel in either direction."""
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise RuntimeError(f"sparse_pattern: mask must be bool with 2 dimensions, got {mask.dtype} {list(mask.shape)}")
    order = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    order[mask] = torch.arange(int(mask.sum()), dtype=torch.int32, device=mask.device)
    per_row = mask.sum(1)
    row_ends = per_row.cumsum(0)
    return SparsePattern(
        row_starts=torch.stack([row_ends - per_row, row_ends]).int(),
        columns=mask.nonzero()[:, 1].to(_index_dtype(mask.shape[1])),
        column_starts=torch.nn.functional.pad(mask.sum(0).cumsum(0), (1, 0)).unsqueeze(0).int(),
        rows=mask.t().nonzero()[:, 1].to(_index_dtype(mask.shape[0])),
        permutation=order.t()[mask.t()],
    )


def _index_dtype(features: int) -> torch.dtype:
    return torch.int16 if features <= 32768 else torch.int32


serve_cuda("sparse_pattern", reference)


@torch.library.register_fake("lth_fast::sparse_pattern")
def _(mask: Tensor) -> SparsePattern:
    # How many survivors and panels there are is known when the values are.
    context = torch.library.get_ctx()
    survivors, row_starts, column_starts = (context.new_dynamic_size() for _ in range(3))
    return SparsePattern(
        row_starts=mask.new_empty((row_starts, mask.shape[0]), dtype=torch.int32),
        columns=mask.new_empty((survivors,), dtype=_index_dtype(mask.shape[1])),
        column_starts=mask.new_empty((column_starts, mask.shape[1] + 1), dtype=torch.int32),
        rows=mask.new_empty((survivors,), dtype=_index_dtype(mask.shape[0])),
        permutation=mask.new_empty((survivors,), dtype=torch.int32),
    )
