#include "cuda/kernels/masked_apply.h"

#include <ATen/MemoryOverlap.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <vector>

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

// Tensors that lie in memory in another order than the kernel's two go one by one.
void masked_apply_each_(at::TensorList tensors, at::TensorList mask_bits) {
  check_masked_list("masked_apply_each_", tensors, mask_bits);
  if (tensors.empty()) return;
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  std::map<size_t, std::vector<cuda::MaskedTensor>> by_size;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    const at::MemoryFormat order = memory_order(tensor);
    if (!tensor.is_contiguous(order)) {
      masked_apply_(tensor, mask_bits[i]);
      continue;
    }
    by_size[tensor.element_size()].push_back(
        {tensor.mutable_data_ptr(), mask_bits[i].const_data_ptr<uint8_t>(), mask_order(tensor, order), tensor.numel()});
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  cuda::masked_apply_each<uint16_t>(by_size[2], stream);
  cuda::masked_apply_each<uint32_t>(by_size[4], stream);
  cuda::masked_apply_each<uint64_t>(by_size[8], stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("masked_apply", lth_fast::masked_apply);
  library.impl("masked_apply_", lth_fast::masked_apply_);
  library.impl("masked_apply_each_", lth_fast::masked_apply_each_);
}
