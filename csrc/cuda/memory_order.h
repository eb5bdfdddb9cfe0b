// The two memory orders that kernels walk weights in: row-major, and channels last.
#pragma once

#include "cuda/kernels/mask_order.h"
#include "ops/torch_headers.h"

namespace lth_fast {

// Channels last where the weights lie so; row-major for all others, which may need a copy then.
inline at::MemoryFormat memory_order(const at::Tensor& weights) {
  const bool channels_last = !weights.is_contiguous() && weights.is_contiguous(at::MemoryFormat::ChannelsLast);
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline cuda::MaskOrder mask_order(const at::Tensor& weights, at::MemoryFormat order) {
  if (order == at::MemoryFormat::Contiguous) return {};
  return {weights.size(1), weights.size(2) * weights.size(3)};
}

}  // namespace lth_fast
