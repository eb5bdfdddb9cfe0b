#include "ops/checks.h"
#include "ops/masked_apply.h"

namespace lth_fast {
namespace {

at::Tensor masked_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& mask_bits) {
  (void)mask_bits;  // the weight is zero where it is pruned
  return at::linear(input, weight, bias);
}

at::Tensor masked_linear_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& mask_bits) {
  const int64_t out_features = grad_output.size(-1), in_features = input.size(-1);
  const at::Tensor outputs = grad_output.reshape({-1, out_features}), inputs = input.reshape({-1, in_features});
  at::Tensor grad_weight = at::mm(outputs.t(), inputs);
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
