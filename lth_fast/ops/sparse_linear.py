"""A linear layer that computes on the survivors of its mask only, forward and backward."""

from __future__ import annotations

import math
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
        values: ``[survivors]``, the weights the mask keeps in row-major order (``weight[mask]``), of the dtype and on
            the device of ``input``.
        bias: ``[out_features]`` or ``None``.
        pattern: The survivors' places, from :func:`~lth_fast.ops.sparse_pattern`. It is trusted: shapes and dtypes are
            checked, the numbers inside are not.
        relu: Whether to return the ReLU of the result, at no cost in the forward.

    Returns:
        ``[..., out_features]``. Under autocast the layer computes in float32.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    return torch.ops.lth_fast.sparse_linear(input, values, bias, *pattern, relu)


def to_dense(values: Tensor, pattern: SparsePattern) -> Tensor:
    """The dense weight ``[out_features, in_features]``: ``values`` at the survivors' places, 0 elsewhere."""
    shape = (pattern.row_starts.shape[1], pattern.column_starts.shape[1] - 1)
    return values.new_zeros(shape).index_put(coordinates(pattern), values)


def reference(input: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern, relu: bool = False) -> Tensor:
    """Definition of :func:`sparse_linear`: a linear layer over the dense weight, differentiable as it stands."""
    output = torch.nn.functional.linear(input, to_dense(values, pattern), bias)
    return output.relu() if relu else output


def _forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    row_starts: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    rows: Tensor,
    permutation: Tensor,
    relu: bool = False,
) -> Tensor:
    return reference(input, values, bias, SparsePattern(row_starts, columns, column_starts, rows, permutation), relu)


def _input_grad(
    grad_output: Tensor, values: Tensor, column_starts: Tensor, rows: Tensor, permutation: Tensor
) -> Tensor:
    # The same product over the transposed pattern.
    lengths = column_starts.diff(dim=1).long()
    panels, in_features = lengths.shape
    column = torch.arange(in_features, device=lengths.device).repeat(panels)
    column = column.repeat_interleave(lengths.flatten(), output_size=rows.numel())
    transposed = values.new_zeros((in_features, grad_output.shape[-1]))
    transposed[column, rows.long()] = values[permutation.long()]
    return grad_output @ transposed.t()


def _values_grad(grad_output: Tensor, input: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    lengths = (row_starts[-1] - row_starts[0]).long()
    row = torch.arange(lengths.numel(), device=lengths.device).repeat_interleave(lengths, output_size=columns.numel())
    samples = math.prod(input.shape[:-1])
    dense = grad_output.reshape(samples, -1).t() @ input.reshape(samples, -1)
    return dense[row, columns.long()]


serve_cuda("sparse_linear", _forward)
serve_cuda("sparse_linear_input_grad", _input_grad)
serve_cuda("sparse_linear_values_grad", _values_grad)


@torch.library.register_fake("lth_fast::sparse_linear")
def _(input: Tensor, values: Tensor, bias: Tensor | None, row_starts: Tensor, *others: object) -> Tensor:
    return input.new_empty((*input.shape[:-1], row_starts.shape[1]))


@torch.library.register_fake("lth_fast::sparse_linear_input_grad")
def _(grad_output: Tensor, values: Tensor, column_starts: Tensor, rows: Tensor, permutation: Tensor) -> Tensor:
    return grad_output.new_empty((*grad_output.shape[:-1], column_starts.shape[1] - 1))


@torch.library.register_fake("lth_fast::sparse_linear_values_grad")
def _(grad_output: Tensor, input: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    return input.new_empty(columns.shape)


@torch.library.register_fake("lth_fast::sparse_linear_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    row_starts: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    rows: Tensor,
    permutation: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    shapes = (input.shape, values.shape, row_starts.shape[1:])
    return tuple(values.new_empty(shape if given else (0,)) for shape, given in zip(shapes, wanted, strict=True))
