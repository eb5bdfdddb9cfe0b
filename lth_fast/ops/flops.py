"""Formulas for ``torch.utils.flop_counter.FlopCounterMode``, which counts the operators with this module imported.

Masked operators count as the dense ones that they are, sparse ones by their survivors: a multiplication and an addition
per survivor and sample (pixel of the output), in the forward and again for either gradient. Biases count nothing, as
with torch's own formulas. The package does not import it, for torch's counter brings Triton along: half a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.lth_fast
Shape = Sequence[int]  # in place of a tensor


@register_flop_formula([_ops.masked_linear, _ops.masked_linear_input_grad, _ops.sparse_linear])
def _(input: Shape, weights: Shape, *others: object, out_shape: Shape) -> int:
    return 2 * math.prod(input[:-1]) * math.prod(weights)


@register_flop_formula(_ops.masked_linear_weight_grad)
def _(grad_output: Shape, input: Shape, *others: object, out_shape: Shape) -> int:
    return 2 * math.prod(input[:-1]) * math.prod(out_shape)


@register_flop_formula(_ops.masked_conv2d)  # whose backward is torch's
def _(input: Shape, weight: Shape, *others: object, out_shape: Shape) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


@register_flop_formula(_ops.sparse_conv2d)
def _(input: Shape, values: Shape, *others: object, out_shape: Shape) -> int:
    batch, _, *pixels = out_shape
    return 2 * batch * math.prod(pixels) * math.prod(values)


@register_flop_formula(_ops.sparse_linear_backward)
def _(
    grad_output: Shape,
    input: Shape,
    values: Shape,
    row_starts: Shape,
    row_order: Shape,
    columns: Shape,
    *others: Sequence[bool],
    out_shape: object,
) -> int:
    *_, wanted = others
    return 2 * math.prod(grad_output[:-1]) * math.prod(columns) * sum(wanted[:2])


@register_flop_formula(_ops.sparse_conv2d_backward)
def _(grad_output: Shape, input: Shape, values: Shape, *others: Sequence[bool], out_shape: object) -> int:
    (batch, _, *pixels), (*_, wanted) = grad_output, others
    return 2 * batch * math.prod(pixels) * math.prod(values) * sum(wanted[:2])
