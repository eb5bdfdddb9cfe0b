#include "ops/masked_linear.h"

#include "ops/checks.h"
#include "ops/masked_apply.h"

namespace lth_fast {
namespace {

at::Tensor masked_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& mask_bits) {
  if (c10::InferenceMode::is_enabled()) check_masked_linear(input, weight, bias, mask_bits);
  // The mask is not needed: the weight is zero where it is pruned.
  return at::linear(input, weight, bias);
}

at::Tensor masked_linear_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& mask_bits) {
  at::Tensor grad_weight = at::mm(as_rows(grad_output).t(), as_rows(input));
  check_mask_bits("masked_linear_weight_grad", mask_bits, grad_weight, "the weight gradient");
  masked_apply_(grad_weight, mask_bits);
  return grad_weight;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("masked_linear", lth_fast::masked_linear);
  library.impl("masked_linear_weight_grad", lth_fast::masked_linear_weight_grad);
}
