#pragma once

#include "ops/rows.h"
#include "ops/torch_headers.h"

namespace lth_fast {

// Called where the derivative is set up and, since inference mode does not pass there, by the kernels in inference
// mode.
void check_masked_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& mask_bits);

}  // namespace lth_fast
