// What the optimizer steps share: tensors as the kernels take them.
#pragma once

#include <utility>
#include <vector>

#include "cuda/kernels/element.h"
#include "cuda/kernels/learning_rate.h"
#include "cuda/memory_order.h"
#include "ops/optimizer_step.h"

namespace lth_fast {

inline cuda::Format format_of(const at::Tensor& parameter) {
  switch (parameter.scalar_type()) {
    case at::kFloat:
      return cuda::Format::kFloat;
    case at::kDouble:
      return cuda::Format::kDouble;
    case at::kHalf:
      return cuda::Format::kHalf;
    default:
      return cuda::Format::kBFloat16;
  }
}

// The tensors of a step as the kernels take them: themselves where their memory order is that of the parameter, else
// copies, which finish() writes back.
class WorkingTensors {
 public:
  const void* read(const at::Tensor& tensor, at::MemoryFormat order) {
    return in_order(tensor, order).const_data_ptr();
  }

  void* write(const at::Tensor& tensor, at::MemoryFormat order) {
    const at::Tensor working = in_order(tensor, order);
    if (!working.is_same(tensor)) copies_.emplace_back(tensor, working);
    written_.push_back(tensor);
    return working.mutable_data_ptr();
  }

  // Null without a list.
  void* write(at::TensorList tensors, size_t i, at::MemoryFormat order) {
    return tensors.empty() ? nullptr : write(tensors[i], order);
  }

  cuda::LearningRate learning_rate(double lr, const std::optional<at::Tensor>& lr_tensor) {
    if (!lr_tensor.has_value()) return {lr, nullptr};
    kept_.push_back(lr_tensor->to(at::kDouble));
    return {lr, kept_.back().const_data_ptr<double>()};
  }

  void finish() {
    for (const auto& [tensor, working] : copies_) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      tensor.copy_(working);
    }
    for (const at::Tensor& tensor : written_) {
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
    }
  }

 private:
  at::Tensor in_order(const at::Tensor& tensor, at::MemoryFormat order) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    kept_.push_back(tensor.contiguous(order));
    return kept_.back();
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;
  std::vector<at::Tensor> kept_, written_;
};

inline const uint8_t* mask_of(const OptionalTensors& mask_bits, size_t i) {
  const std::optional<at::Tensor> bits = mask_bits.get(i);
  return bits.has_value() ? bits->const_data_ptr<uint8_t>() : nullptr;
}

}  // namespace lth_fast
