// Where the mask bit of a weight stands. Bits are in flat (row-major) order; weights may lie in memory channels last.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lth_fast::cuda {

struct MaskOrder {
  // Of weights [filters, channels, height, width] whose channels lie innermost; 1 and 1 where flat order is memory
  // order.
  int64_t channels = 1;
  int64_t area = 1;  // height * width

  __host__ __device__ bool is_flat() const { return channels == 1 || area == 1; }

  // The flat index of the weight at this place in memory.
  __host__ __device__ int64_t flat_index(int64_t place) const {
    if (is_flat()) return place;
    const int64_t channel = place % channels, pixel = place / channels % area, filter = place / channels / area;
    return (filter * channels + channel) * area + pixel;
  }
};

__host__ __device__ inline bool survives(const uint8_t* bits, int64_t index) {
  return (bits[index / 8] >> (index % 8) & 1) != 0;
}

}  // namespace lth_fast::cuda
