#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// Called where the derivative is set up and, since inference mode does not pass there, by the kernels in inference
// mode.
void check_masked_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& mask_bits);

// [..., features] as [rows, features]. A reshape to {-1, features} cannot tell the rows of a tensor without elements.
inline at::Tensor as_rows(const at::Tensor& tensor) {
  return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2);
}

}  // namespace lth_fast
