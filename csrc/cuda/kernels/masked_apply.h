#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernels/mask_order.h"

namespace lth_fast::cuda {

// output = mask bit ? input : +0, for elements of 2, 4 and 8 bytes (as unsigned integers). In place when output ==
// input.
template <typename Element>
void masked_apply(const Element* input, const uint8_t* bits, Element* output, int64_t count, cudaStream_t stream);

// The same in place, for weights that do not lie in flat order.
template <typename Element>
void masked_apply_in_order(Element* weights, const uint8_t* bits, MaskOrder order, int64_t count, cudaStream_t stream);

// Weights, and the mask to apply to them in place.
struct MaskedTensor {
  void* weights;
  const uint8_t* bits;
  MaskOrder order;
  int64_t count;
};

// The same in place for any number of tensors at once, all with elements of this size.
template <typename Element>
void masked_apply_each(const std::vector<MaskedTensor>& tensors, cudaStream_t stream);

}  // namespace lth_fast::cuda
