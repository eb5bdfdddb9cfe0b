"""A linear layer that computes on the survivors of its mask only, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda
from lth_fast.ops.sparse_pattern import SparsePattern, coordinates


def sparse_linear(
    input: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern, relu: bool = False
) -> Tensor:
    """Compute ``input @ weight.T + bias`` for a weight of which only the survivors exist, and its ReLU if asked.

    The work is proportional to the number of survivors, in the forward and in both gradients; a gradient that autograd
    does not ask for is not computed. The result does not depend on the number of threads.

    Args:
        input: float32 or float64 ``[..., in_features]``.
        values: ``[survivors]``, the weights the mask keeps in the pattern's row order
            (``weight[coordinates(pattern)]``), of the dtype and on the device of ``input``.
        bias: ``[out_features]`` or ``None``.
        pattern: The survivors' places, from :func:`~lth_fast.ops.sparse_pattern`. It is trusted: shapes and dtypes are
            checked, the numbers inside are not.
        relu: Whether to return the ReLU of the result, at no cost in the forward.

    Returns:
        ``[..., out_features]``. Under autocast the operator computes in float32
        (the layer takes the dense form there).

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    return torch.ops.lth_fast.sparse_linear(input, values, bias, *pattern, relu)


def to_dense(values: Tensor, pattern: SparsePattern) -> Tensor:
    """The dense weight ``[out_features, in_features]``: ``values`` at the survivors' places, 0 elsewhere."""
    shape = (pattern.row_order.shape[1], pattern.column_order.shape[1])
    return values.new_zeros(shape).index_put(coordinates(pattern), values)


def from_dense(weight: Tensor, pattern: SparsePattern) -> Tensor:
    """The survivors ``[survivors]`` of ``weight`` ``[out_features, in_features]`` in the pattern's row order."""
    row, column = coordinates(pattern)
    return weight[row.to(weight.device), column.to(weight.device)]


def reference(input: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern, relu: bool = False) -> Tensor:
    """Definition of :func:`sparse_linear`: a linear layer over the dense weight, differentiable as it stands."""
    output = torch.nn.functional.linear(input, to_dense(values, pattern), bias)
    return output.relu() if relu else output


def _forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    row_starts: Tensor,
    row_order: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    column_order: Tensor,
    rows: Tensor,
    permutation: Tensor,
    relu: bool = False,
) -> Tensor:
    pattern = SparsePattern(row_starts, row_order, columns, column_starts, column_order, rows, permutation)
    return reference(input, values, bias, pattern, relu)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    row_starts: Tensor,
    row_order: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    column_order: Tensor,
    rows: Tensor,
    permutation: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    pattern = SparsePattern(row_starts, row_order, columns, column_starts, column_order, rows, permutation)
    gradients, inputs = (torch.atleast_2d(tensor).flatten(0, -2) for tensor in (grad_output, input))
    none = values.new_empty(0)
    return (
        grad_output @ to_dense(values, pattern) if wanted[0] else none,
        (gradients.t() @ inputs)[coordinates(pattern)] if wanted[1] else none,
        gradients.sum(0) if wanted[2] else none,
    )


serve_cuda("sparse_linear", _forward)
serve_cuda("sparse_linear_backward", _backward)


@torch.library.register_fake("lth_fast::sparse_linear")
def _(
    input: Tensor, values: Tensor, bias: Tensor | None, row_starts: Tensor, row_order: Tensor, *others: object
) -> Tensor:
    return input.new_empty((*input.shape[:-1], row_order.shape[1]))


@torch.library.register_fake("lth_fast::sparse_linear_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    row_starts: Tensor,
    row_order: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    column_order: Tensor,
    rows: Tensor,
    permutation: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    shapes = (input.shape, columns.shape, row_order.shape[1:])
    return tuple(values.new_empty(shape if given else (0,)) for shape, given in zip(shapes, wanted, strict=True))
