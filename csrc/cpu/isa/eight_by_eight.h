// Eight vectors of eight lanes: their transpose, the sum of each, and their positive parts.
//
// The first two go through the same three stages of shuffles. The first two stages stay inside the halves of a vector,
// which is where AVX shuffles in one instruction; the third joins halves.
#pragma once

#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {

#if defined(__clang__)
#define LTH_FAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LTH_FAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, LaneNumbers{__VA_ARGS__})
#endif

template <typename Element>
struct EightByEight {
  using Vector = typename Lanes<Element>::Vector;
  static constexpr size_t kSide = 8;
  // Lane numbers of a shuffle: integers as wide as the element.
  using LaneNumbers = decltype(Vector{} < Vector{});

  static inline Vector interleave_low(Vector a, Vector b) { return LTH_FAST_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
  static inline Vector interleave_high(Vector a, Vector b) {
    return LTH_FAST_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  static inline Vector join_low(Vector a, Vector b) { return LTH_FAST_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11); }
  static inline Vector join_high(Vector a, Vector b) { return LTH_FAST_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }

  // Row i, lane j becomes row j, lane i.
  static inline void transpose(Vector (&rows)[8]) {
    Vector columns[2][4];  // [rows 0-3 | rows 4-7][column j in the lower half, column j + 4 in the upper]
    for (int half = 0; half < 2; ++half) {
      const Vector* row = rows + 4 * half;
      const Vector even_low = interleave_low(row[0], row[2]), odd_low = interleave_low(row[1], row[3]);
      const Vector even_high = interleave_high(row[0], row[2]), odd_high = interleave_high(row[1], row[3]);
      columns[half][0] = interleave_low(even_low, odd_low);
      columns[half][1] = interleave_high(even_low, odd_low);
      columns[half][2] = interleave_low(even_high, odd_high);
      columns[half][3] = interleave_high(even_high, odd_high);
    }
    for (int j = 0; j < 4; ++j) {
      rows[j] = join_low(columns[0][j], columns[1][j]);
      rows[j + 4] = join_high(columns[0][j], columns[1][j]);
    }
  }

  // ReLU; as torch's, it lets NaN through.
  static inline void positive_part(Vector (&rows)[8]) {
    for (int i = 0; i < 8; ++i) rows[i] = rows[i] < Vector{} ? Vector{} : rows[i];
  }

  // Lane i of the result is the sum of the lanes of vectors[i]: the transpose with an addition after each stage, so
  // that every stage has half the vectors of the one before.
  static inline Vector sums(const Vector* vectors) {
    const auto add = [](Vector a, Vector b) { return interleave_low(a, b) + interleave_high(a, b); };
    const Vector low = add(add(vectors[0], vectors[2]), add(vectors[1], vectors[3]));
    const Vector high = add(add(vectors[4], vectors[6]), add(vectors[5], vectors[7]));
    return join_low(low, high) + join_high(low, high);
  }
};

#undef LTH_FAST_SHUFFLE

}  // namespace lth_fast::LTH_FAST_ISA
