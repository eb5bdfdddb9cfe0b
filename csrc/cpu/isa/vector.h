// Eight lanes of any element type, in the vector extension of GCC and Clang: the same source becomes SSE2, AVX2,
// AVX-512 or NEON by the flags of the object it is compiled in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lth_fast::LTH_FAST_ISA {

template <typename Element>
struct Lanes {
  typedef Element Vector __attribute__((vector_size(8 * sizeof(Element)), aligned(sizeof(Element)), may_alias));

  // All bits of lane i set where bit i of `byte` is.
  static inline Vector select(uint8_t byte) {
    const Vector bit_of_lane = {1, 2, 4, 8, 16, 32, 64, 128};
    const Vector spread = (Vector{} + static_cast<Element>(byte)) & bit_of_lane;
    return reinterpret_cast<Vector>(spread == bit_of_lane);
  }
};

// What a kernel keeps its sums in.
template <typename Element>
struct Register {
#if defined(__AVX512F__)
  static constexpr size_t kWidth = 64 / sizeof(Element);
#else
  static constexpr size_t kWidth = 8;  // a pair of registers where they are narrower
#endif
  typedef Element Vector __attribute__((vector_size(kWidth * sizeof(Element)), aligned(sizeof(Element)), may_alias));
};

}  // namespace lth_fast::LTH_FAST_ISA
