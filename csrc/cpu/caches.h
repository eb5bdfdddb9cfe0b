// Sizes of the caches of a core, for choosing how much to work on at a time.
#pragma once

#include <unistd.h>

#include <cstdint>

namespace lth_fast {

inline int64_t cache_bytes(int name, int64_t otherwise) {
  const int64_t bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

#ifdef _SC_LEVEL1_DCACHE_SIZE
inline int64_t level1_cache_bytes() {
  static const int64_t bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  return bytes;
}
inline int64_t level2_cache_bytes() {
  static const int64_t bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
  return bytes;
}
#else
inline int64_t level1_cache_bytes() { return 32 << 10; }
inline int64_t level2_cache_bytes() { return 512 << 10; }
#endif

}  // namespace lth_fast
