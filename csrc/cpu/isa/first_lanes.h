// The first few of eight elements in memory, where what lies behind them must be neither read nor written; and the sums
// of eight registers. AVX-512 alone: it can leave lanes out.
#pragma once

#if defined(__AVX512F__)

#include "eight_by_eight.h"
#include "intrinsics.h"

namespace lth_fast::LTH_FAST_ISA {

// Writes `count` of `lanes`, 1 to 8, or adds them.
inline void store_first(Lanes<float>::Vector lanes, int32_t count, float* to, bool add) {
  const auto mask = static_cast<__mmask8>((1u << count) - 1);
  auto value = reinterpret_cast<__m256>(lanes);
  if (add) value = _mm256_add_ps(value, _mm256_maskz_loadu_ps(mask, to));
  _mm256_mask_storeu_ps(to, mask, value);
}

inline void store_first(Lanes<double>::Vector lanes, int32_t count, double* to, bool add) {
  const auto mask = static_cast<__mmask8>((1u << count) - 1);
  auto value = reinterpret_cast<__m512d>(lanes);
  if (add) value = _mm512_add_pd(value, _mm512_maskz_loadu_pd(mask, to));
  _mm512_mask_storeu_pd(to, mask, value);
}

// Lane i of the result is the sum of the lanes of vectors[i].
template <typename Element>
inline Lanes<double>::Vector sums_of_eight(const Lanes<double>::Vector (&vectors)[8]) {
  return EightByEight<double>::sums(vectors);
}

// As EightByEight::sums, with one stage more at the beginning, which joins two vectors of sixteen lanes.
template <typename Element>
inline Lanes<float>::Vector sums_of_eight(const Register<float>::Vector (&vectors)[8]) {
  const auto halves = [](Register<float>::Vector a, Register<float>::Vector b) {
    const auto x = reinterpret_cast<__m512>(a), y = reinterpret_cast<__m512>(b);
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  };
  const auto pairs = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512 even = pairs(halves(vectors[0], vectors[4]), halves(vectors[2], vectors[6]));
  const __m512 odd = pairs(halves(vectors[1], vectors[5]), halves(vectors[3], vectors[7]));
  const __m512 quarters = pairs(even, odd);  // of vectors 0-3, 0-3, 4-7, 4-7
  const __m512 sums = _mm512_add_ps(quarters, _mm512_shuffle_f32x4(quarters, quarters, 0xb1));
  return reinterpret_cast<Lanes<float>::Vector>(_mm512_castps512_ps256(_mm512_shuffle_f32x4(sums, sums, 0x08)));
}

}  // namespace lth_fast::LTH_FAST_ISA

#endif
