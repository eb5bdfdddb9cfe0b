// Ranges of weights for at::parallel_for that never share a byte of the mask.
#pragma once

#include <cstdint>

#include "ops/torch_headers.h"

namespace lth_fast {

// Below this many weights one thread is faster than waking a second one.
constexpr int64_t kWeightsPerTask = 1 << 17;

// Calls work(first, count) on disjoint ranges that cover [0, total); every `first` is a multiple of 8.
template <typename Work>
void parallel_over_weights(int64_t total, const Work& work) {
  at::parallel_for(0, (total + 7) / 8, kWeightsPerTask / 8, [&](int64_t begin, int64_t end) {
    const int64_t first = 8 * begin;
    work(first, std::min(8 * end, total) - first);
  });
}

}  // namespace lth_fast
