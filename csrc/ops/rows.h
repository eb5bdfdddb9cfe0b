#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// [..., features] as [rows, features]. A reshape to {-1, features} cannot tell the rows of a tensor without elements.
inline at::Tensor as_rows(const at::Tensor& tensor) {
  if (tensor.dim() == 2) return tensor;
  return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2);
}

}  // namespace lth_fast
