#pragma once

#include <optional>

#include "ops/torch_headers.h"

namespace lth_fast {

// input [..., in_features] * transpose(weight [out_features, in_features]) + bias [out_features] by oneDNN where that
// is faster than at::linear (see cpu/onednn.h), an undefined tensor where it is not. Transposed views are taken as they
// are. To be called below autograd.
at::Tensor onednn_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace lth_fast
