// What the optimizer steps share: tensors as the kernels take them, and one parallel loop over all of a group's
// weights.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "ops/optimizer_step.h"

namespace lth_fast {

// The memory order in which a parameter and all that belongs to it pass by: the parameter's own where its weights fill
// their memory (channels-last, transposed), else row-major. Refers to the parameter.
class MemoryOrder {
 public:
  explicit MemoryOrder(const at::Tensor& parameter)
      : parameter_(parameter), row_major_(parameter.is_contiguous() || !parameter.is_non_overlapping_and_dense()) {}

  bool fits(const at::Tensor& tensor) const {
    if (row_major_) return tensor.is_contiguous();
    for (int64_t d = 0; d < parameter_.dim(); ++d) {
      if (parameter_.size(d) != 1 && tensor.stride(d) != parameter_.stride(d)) return false;
    }
    return true;
  }

  at::Tensor empty(const at::TensorOptions& options) const {
    return row_major_ ? at::empty(parameter_.sizes(), options)
                      : at::empty_strided(parameter_.sizes(), parameter_.strides(), options);
  }

  // Mask bits count weights in row-major order; these count them as they lie in memory.
  at::Tensor sorted(const at::Tensor& bits) const {
    if (row_major_) return bits;
    at::Tensor mask = at::empty(parameter_.sizes(), bits.options()), lying = empty(bits.options());
    const auto count = static_cast<size_t>(mask.numel());
    kernels().unpack_mask(bits.const_data_ptr<uint8_t>(), mask.mutable_data_ptr<uint8_t>(), count);
    lying.copy_(mask);
    at::Tensor sorted = at::empty_like(bits);
    kernels().pack_mask(lying.const_data_ptr<uint8_t>(), sorted.mutable_data_ptr<uint8_t>(), count);
    return sorted;
  }

 private:
  const at::Tensor& parameter_;
  bool row_major_;
};

// The tensors of a step as the kernels take them: themselves where memory order and type fit, else copies, which
// finish() writes back.
template <typename Element>
class WorkingTensors {
 public:
  const Element* read(const at::Tensor& tensor, const MemoryOrder& order) {
    return fitting(tensor, order).template const_data_ptr<Element>();
  }

  Element* write(const at::Tensor& tensor, const MemoryOrder& order) {
    const at::Tensor working = fitting(tensor, order);
    if (!working.is_same(tensor)) copies_.emplace_back(tensor, working);
    written_.push_back(tensor);
    return working.mutable_data_ptr<Element>();
  }

  // The bits, or null where every weight survives.
  const uint8_t* mask(const std::optional<at::Tensor>& bits, const MemoryOrder& order) {
    if (!bits.has_value()) return nullptr;
    kept_.push_back(order.sorted(*bits));
    return kept_.back().const_data_ptr<uint8_t>();
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
  at::Tensor fitting(const at::Tensor& tensor, const MemoryOrder& order) {
    constexpr auto type = c10::CppTypeToScalarType<Element>::value;
    if (tensor.scalar_type() == type && order.fits(tensor)) return tensor;
    at::Tensor copy = order.empty(tensor.options().dtype(type));
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    copy.copy_(tensor);
    kept_.push_back(copy);
    return copy;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;
  std::vector<at::Tensor> kept_, written_;
};

// Calls work(parameter, first, count) for pieces that cover all parameters, in parallel; threads have equal shares of
// the weights. Every `first` is a multiple of 8: a byte of the mask belongs to one piece.
template <typename Work>
void for_each_piece(at::TensorList parameters, const Work& work) {
  constexpr int64_t kEightsPerTask = 1 << 12;  // about 15 microseconds of work: below it, waking a thread does not pay
  const auto eights_of = [](const at::Tensor& parameter) { return (parameter.numel() + 7) / 8; };
  int64_t eights = 0;
  for (const at::Tensor& parameter : parameters) eights += eights_of(parameter);
  at::parallel_for(0, eights, kEightsPerTask, [&](int64_t begin, int64_t end) {
    int64_t before = 0;  // eights of the parameters before
    for (size_t i = 0; i < parameters.size() && before < end; ++i) {
      const int64_t first = std::max<int64_t>(begin - before, 0),
                    last = std::min(end - before, eights_of(parameters[i]));
      if (first < last) {
        const int64_t weight = 8 * first, end_weight = std::min(8 * last, parameters[i].numel());
        work(i, static_cast<size_t>(weight), static_cast<size_t>(end_weight - weight));
      }
      before += eights_of(parameters[i]);
    }
  });
}

// float64 for float64 parameters, float32 for all others.
template <typename Step>
void step_in_working_type(at::TensorList parameters, const Step& step) {
  if (parameters.empty()) return;
  if (parameters[0].scalar_type() == at::kDouble) {
    step(double{});
  } else {
    step(float{});
  }
}

inline double learning_rate(double lr, const std::optional<at::Tensor>& lr_tensor) {
  return lr_tensor.has_value() ? lr_tensor->item<double>() : lr;
}

}  // namespace lth_fast
