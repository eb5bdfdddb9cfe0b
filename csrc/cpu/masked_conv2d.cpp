#include "ops/masked_conv2d.h"

namespace lth_fast {
namespace {

at::Tensor masked_conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& mask_bits, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                         c10::SymIntArrayRef dilation, c10::SymInt groups) {
  if (c10::InferenceMode::is_enabled()) check_masked_conv2d(input, weight, bias, mask_bits, groups);
  // The mask is not needed: the weight is zero where it is pruned.
  return at::conv2d_symint(input, weight, bias, stride, padding, dilation, std::move(groups));
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("masked_conv2d", lth_fast::masked_conv2d); }
