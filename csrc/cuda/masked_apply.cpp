#include "cuda/kernels/masked_apply.h"

#include <ATen/MemoryOverlap.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/memory_order.h"
#include "ops/checks.h"

namespace lth_fast {
namespace {

// Calls work with the unsigned integer that has the size of the tensor's elements.
template <typename Work>
void by_element_size(const at::Tensor& tensor, const Work& work) {
  switch (tensor.element_size()) {
    case 2:
      return work(uint16_t{});
    case 4:
      return work(uint32_t{});
    default:
      return work(uint64_t{});
  }
}

void apply(const at::Tensor& input, const at::Tensor& bits, const at::Tensor& output) {
  by_element_size(input, [&](auto element) {
    using Element = decltype(element);
    cuda::masked_apply(static_cast<const Element*>(input.const_data_ptr()), bits.const_data_ptr<uint8_t>(),
                       static_cast<Element*>(output.mutable_data_ptr()), input.numel(),
                       c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void apply_channels_last(const at::Tensor& weights, const at::Tensor& bits) {
  const auto order = mask_order(weights, at::MemoryFormat::ChannelsLast);
  by_element_size(weights, [&](auto element) {
    cuda::masked_apply_in_order(static_cast<decltype(element)*>(weights.mutable_data_ptr()),
                                bits.const_data_ptr<uint8_t>(), order, weights.numel(),
                                c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor masked_apply(const at::Tensor& input, const at::Tensor& mask_bits) {
  check_mask_bits("masked_apply", mask_bits, input, "input");
  check_element_size("masked_apply", input, "input");
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor from = input.contiguous();
  at::Tensor output = at::empty_like(from);
  apply(from, mask_bits, output);
  return output;
}

void masked_apply_(const at::Tensor& self, const at::Tensor& mask_bits) {
  check_mask_bits("masked_apply_", mask_bits, self, "tensor");
  check_element_size("masked_apply_", self, "tensor");
  const c10::cuda::CUDAGuard guard(self.device());
  if (self.is_contiguous()) {
    apply(self, mask_bits, self);
  } else if (memory_order(self) == at::MemoryFormat::ChannelsLast) {
    apply_channels_last(self, mask_bits);
  } else {
    at::assert_no_internal_overlap(self);
    const at::Tensor dense = self.contiguous();
    apply(dense, mask_bits, dense);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    self.copy_(dense);
  }
  if (!self.is_inference()) self.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("masked_apply", lth_fast::masked_apply);
  library.impl("masked_apply_", lth_fast::masked_apply_);
}
