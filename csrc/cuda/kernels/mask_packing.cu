#include "cuda/kernels/mask_packing.h"

#include "cuda/kernels/launch.h"
#include "cuda/kernels/mask_order.h"

namespace lth_fast::cuda {
namespace {

// One thread per byte of bits.
__global__ void pack(const uint8_t* mask, uint8_t* bits, int64_t count) {
  const int64_t byte = item();
  if (byte >= (count + 7) / 8) return;
  unsigned packed = 0;
  for (int bit = 0; bit < 8; ++bit) {
    const int64_t weight = 8 * byte + bit;
    if (weight < count && mask[weight] != 0) packed |= 1u << bit;
  }
  bits[byte] = static_cast<uint8_t>(packed);
}

// One thread per weight.
__global__ void unpack(const uint8_t* bits, uint8_t* mask, int64_t count) {
  const int64_t weight = item();
  if (weight < count) mask[weight] = survives(bits, weight);
}

}  // namespace

void pack_mask(const uint8_t* mask, uint8_t* bits, int64_t count, cudaStream_t stream) {
  launch_for_each(pack, (count + 7) / 8, stream, mask, bits, count);
}

void unpack_mask(const uint8_t* bits, uint8_t* mask, int64_t count, cudaStream_t stream) {
  launch_for_each(unpack, count, stream, bits, mask, count);
}

}  // namespace lth_fast::cuda
