// The transpose of sixteen vectors of sixteen floats: a whole line of the cache each, so that no line is touched twice.
#pragma once

#include "intrinsics.h"
#include "vector.h"

#if defined(__AVX512F__)

namespace lth_fast::LTH_FAST_ISA {

struct SixteenBySixteen {
  using Vector = typename Register<float>::Vector;
  static constexpr size_t kSide = 16;

  // Row i, lane j becomes row j, lane i.
  static inline void transpose(Vector (&rows)[16]) {
    const auto low = [](__m512 a, __m512 b) { return _mm512_unpacklo_ps(a, b); };
    const auto high = [](__m512 a, __m512 b) { return _mm512_unpackhi_ps(a, b); };
    // Quarters of a vector, numbered 0 to 3: the even ones of both, or the odd ones.
    const auto even = [](__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0x88); };
    const auto odd = [](__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0xdd); };

    __m512 columns[4][4];  // [rows 4i to 4i + 3][column j of each quarter of them]
    for (int i = 0; i < 4; ++i) {
      const auto row = [&](int j) { return reinterpret_cast<__m512>(rows[4 * i + j]); };
      const __m512 even_low = low(row(0), row(2)), odd_low = low(row(1), row(3));
      const __m512 even_high = high(row(0), row(2)), odd_high = high(row(1), row(3));
      columns[i][0] = low(even_low, odd_low);
      columns[i][1] = high(even_low, odd_low);
      columns[i][2] = low(even_high, odd_high);
      columns[i][3] = high(even_high, odd_high);
    }
    for (int j = 0; j < 4; ++j) {
      const __m512 even_top = even(columns[0][j], columns[1][j]), even_bottom = even(columns[2][j], columns[3][j]);
      const __m512 odd_top = odd(columns[0][j], columns[1][j]), odd_bottom = odd(columns[2][j], columns[3][j]);
      rows[j] = reinterpret_cast<Vector>(even(even_top, even_bottom));
      rows[j + 4] = reinterpret_cast<Vector>(even(odd_top, odd_bottom));
      rows[j + 8] = reinterpret_cast<Vector>(odd(even_top, even_bottom));
      rows[j + 12] = reinterpret_cast<Vector>(odd(odd_top, odd_bottom));
    }
  }

  // ReLU; as torch's, it lets NaN through.
  static inline void positive_part(Vector (&rows)[16]) {
    for (int i = 0; i < 16; ++i) rows[i] = rows[i] < Vector{} ? Vector{} : rows[i];
  }
};

}  // namespace lth_fast::LTH_FAST_ISA

#endif
