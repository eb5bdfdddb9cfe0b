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
// their memory (channels-last, transposed), else row-major.
class MemoryOrder {
 public:
  explicit MemoryOrder(const at::Tensor& parameter)
      : sizes_(parameter.sizes().vec()),
        row_major_(parameter.is_contiguous() || !parameter.is_non_overlapping_and_dense()),
        strides_(row_major_ ? row_major_strides(sizes_) : parameter.strides().vec()) {}

  bool fits(const at::Tensor& tensor) const {
    for (size_t d = 0; d < sizes_.size(); ++d) {
      if (sizes_[d] != 1 && tensor.stride(static_cast<int64_t>(d)) != strides_[d]) return false;
    }
    return true;
  }

  at::Tensor empty(const at::TensorOptions& options) const { return at::empty_strided(sizes_, strides_, options); }

  // Mask bits count weights in row-major order; these count them as they lie in memory.
  at::Tensor sorted(const at::Tensor& bits) const {
    if (row_major_) return bits;
    at::Tensor mask = at::empty(sizes_, bits.options()), lying = empty(bits.options());
    const auto count = static_cast<size_t>(mask.numel());
    kernels().unpack_mask(bits.const_data_ptr<uint8_t>(), mask.mutable_data_ptr<uint8_t>(), count);
    lying.copy_(mask);
    at::Tensor sorted = at::empty_like(bits);
    kernels().pack_mask(lying.const_data_ptr<uint8_t>(), sorted.mutable_data_ptr<uint8_t>(), count);
    return sorted;
  }

 private:
  static std::vector<int64_t> row_major_strides(const std::vector<int64_t>& sizes) {
    const auto strides = c10::contiguous_strides(sizes);
    return {strides.begin(), strides.end()};
  }

  std::vector<int64_t> sizes_;
  bool row_major_;
  std::vector<int64_t> strides_;
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

// Calls work(parameter, first, count) for chunks that cover all parameters, in parallel. The chunks do not depend on
// the number of threads, and every `first` is a multiple of 8: a byte of the mask belongs to one chunk.
template <typename Work>
void for_each_chunk(at::TensorList parameters, const Work& work) {
  constexpr int64_t kChunk = 1 << 13;
  constexpr int64_t kChunksPerTask = 4;  // about 15 microseconds of work: below it, waking a thread does not pay
  struct Chunk {
    size_t parameter, first, count;
  };
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t total = parameters[i].numel();
    for (int64_t first = 0; first < total; first += kChunk) {
      chunks.push_back({i, static_cast<size_t>(first), static_cast<size_t>(std::min(kChunk, total - first))});
    }
  }
  at::parallel_for(0, static_cast<int64_t>(chunks.size()), kChunksPerTask, [&](int64_t begin, int64_t end) {
    for (auto chunk = chunks.begin() + begin; chunk != chunks.begin() + end; ++chunk) {
      work(chunk->parameter, chunk->first, chunk->count);
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
