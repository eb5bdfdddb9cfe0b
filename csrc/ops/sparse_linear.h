#pragma once

#include <array>

#include "ops/torch_headers.h"

namespace lth_fast {

// Shapes and types. That the numbers inside are those of one mask is sparse_pattern's part.
void check_sparse_linear(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                         const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                         const at::Tensor& permutation);

// Autograd passes a gradient that fits; who calls the operator may pass any.
void check_sparse_linear_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values,
                                  const at::Tensor& row_order, const at::Tensor& columns,
                                  const at::Tensor& column_order, std::array<bool, 3> wanted);

}  // namespace lth_fast
