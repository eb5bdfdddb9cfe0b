// Bytes that are needed soon, brought into the caches.
#pragma once

#include <cstdint>

namespace lth_fast {

// Loads one byte of each of their lines, in the order of memory: a row of loads wakes the processor's own prefetching,
// which instructions that prefetch do not.
inline void touch(const uint8_t* bytes, int64_t count) {
  constexpr int64_t kLine = 64;
  if (count <= 0) return;
  uint32_t sum = bytes[count - 1];
  for (int64_t at = 0; at < count; at += kLine) sum += bytes[at];
  asm volatile("" : : "r"(sum));  // used, for all the compiler knows
}

}  // namespace lth_fast
