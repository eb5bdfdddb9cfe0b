#pragma once

#include <algorithm>
#include <cstdint>

namespace lth_fast {

// Lines that stay together in every panel, sorted by their number of survivors: what one thread has to work on. Enough
// for lines of one length to follow each other, so that the ends of loops are predicted; an even number of blocks, for
// two threads.
inline int64_t lines_per_block(int64_t lines) {
  constexpr int64_t kMost = 64;
  const int64_t blocks = std::max<int64_t>((lines + 2 * kMost - 1) / (2 * kMost), 1) * 2;
  return (lines + 8 * blocks - 1) / (8 * blocks) * 8;
}

}  // namespace lth_fast
