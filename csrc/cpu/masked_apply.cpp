#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "ops/checks.h"

namespace lth_fast {
namespace {

template <typename Element>
void apply(void (*kernel)(const Element*, const uint8_t*, Element*, size_t), const at::Tensor& input,
           const at::Tensor& bits, const at::Tensor& output) {
  const auto* from = static_cast<const Element*>(input.const_data_ptr());
  const auto* mask = bits.const_data_ptr<uint8_t>();
  auto* to = static_cast<Element*>(output.mutable_data_ptr());
  parallel_over_weights(input.numel(), [&](int64_t first, int64_t count) {
    kernel(from + first, mask + first / 8, to + first, static_cast<size_t>(count));
  });
}

void apply_by_element_size(const at::Tensor& input, const at::Tensor& bits, const at::Tensor& output) {
  const auto& table = kernels();
  switch (input.element_size()) {
    case 2:
      return apply(table.masked_apply_16, input, bits, output);
    case 4:
      return apply(table.masked_apply_32, input, bits, output);
    default:
      return apply(table.masked_apply_64, input, bits, output);
  }
}

at::Tensor masked_apply(const at::Tensor& input, const at::Tensor& mask_bits) {
  check_mask_bits("masked_apply", mask_bits, input, "input");
  check_element_size("masked_apply", input, "input");
  const at::Tensor from = input.contiguous();
  at::Tensor output = at::empty_like(from);
  apply_by_element_size(from, mask_bits, output);
  return output;
}

void masked_apply_(const at::Tensor& self, const at::Tensor& mask_bits) {
  check_mask_bits("masked_apply_", mask_bits, self, "tensor");
  check_element_size("masked_apply_", self, "tensor");
  if (self.is_contiguous()) {
    apply_by_element_size(self, mask_bits, self);
  } else {
    // Weights in channels-last order: bits stand in flat index order, so go through a contiguous copy.
    const at::Tensor dense = self.contiguous();
    apply_by_element_size(dense, mask_bits, dense);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    self.copy_(dense);
  }
  if (!self.is_inference()) self.unsafeGetTensorImpl()->bump_version();
}

void masked_apply_each_(at::TensorList tensors, at::TensorList mask_bits) {
  check_masked_list("masked_apply_each_", tensors, mask_bits);
  for (size_t i = 0; i < tensors.size(); ++i) masked_apply_(tensors[i], mask_bits[i]);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("masked_apply", lth_fast::masked_apply);
  library.impl("masked_apply_", lth_fast::masked_apply_);
  library.impl("masked_apply_each_", lth_fast::masked_apply_each_);
}
