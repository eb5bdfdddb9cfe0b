// Bytes to numbers: a loop that compilers turn into vectors.
#include "table.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

void gather_pixels(const uint8_t* pixels, float mean, float gain, float* output, size_t count) {
  for (size_t i = 0; i < count; ++i) output[i] = (static_cast<float>(pixels[i]) - mean) * gain;
}

}  // namespace

void register_gather_images(KernelTable& table) { table.gather_pixels = gather_pixels; }

}  // namespace lth_fast::LTH_FAST_ISA
