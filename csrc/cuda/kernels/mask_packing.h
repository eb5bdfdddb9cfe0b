#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lth_fast::cuda {

// `mask` holds a bool per byte, any value but 0 is true; weight i is bit i % 8 of byte i / 8 of `bits`. Bits behind
// `count` in the last byte are written as 0.
void pack_mask(const uint8_t* mask, uint8_t* bits, int64_t count, cudaStream_t stream);
void unpack_mask(const uint8_t* bits, uint8_t* mask, int64_t count, cudaStream_t stream);

}  // namespace lth_fast::cuda
