// Copies into shared memory that happen when they are waited for, and not before.
#pragma once

#include <cuda_runtime_api.h>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) {
    cuda_on_cpu::fail("a copy that is not aligned to its size");
  }
  if (bytes != 4 && bytes != 8 && bytes != 16) cuda_on_cpu::fail("a copy of another size than 4, 8 or 16 bytes");
  cuda_on_cpu::fibers[cuda_on_cpu::current]->requested.push_back({to, from, bytes, zeros});
}

inline void __pipeline_commit() {}

inline void __pipeline_wait_prior(size_t) {
  auto& requested = cuda_on_cpu::fibers[cuda_on_cpu::current]->requested;
  for (const auto& [to, from, bytes, zeros] : requested) {
    std::memcpy(to, from, bytes - zeros);
    std::memset(static_cast<char*>(to) + (bytes - zeros), 0, zeros);
  }
  requested.clear();
}
