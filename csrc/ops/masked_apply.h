#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// output[i] = mask bit i ? input[i] : 0. Differentiable in `input`.
at::Tensor masked_apply(const at::Tensor& input, const at::Tensor& mask_bits);
// The same in place: no autograd, for weights and gradients outside of the graph.
void masked_apply_(const at::Tensor& self, const at::Tensor& mask_bits);

}  // namespace lth_fast
