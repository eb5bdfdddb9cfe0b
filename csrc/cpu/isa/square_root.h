// Square roots of eight lanes. An ordinary loop over sqrt() would not become vector instructions: it has to set errno.
#pragma once

#include "vector.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lth_fast::LTH_FAST_ISA {

inline Lanes<float>::Vector square_root(Lanes<float>::Vector values) {
#if defined(__AVX__)
  return reinterpret_cast<Lanes<float>::Vector>(_mm256_sqrt_ps(reinterpret_cast<__m256>(values)));
#else
  auto* lanes = reinterpret_cast<float*>(&values);
#if defined(__SSE2__)
  for (size_t i = 0; i < 8; i += 4) _mm_storeu_ps(lanes + i, _mm_sqrt_ps(_mm_loadu_ps(lanes + i)));
#elif defined(__aarch64__)
  for (size_t i = 0; i < 8; i += 4) vst1q_f32(lanes + i, vsqrtq_f32(vld1q_f32(lanes + i)));
#else
  for (size_t i = 0; i < 8; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
#endif
  return values;
#endif
}

inline Lanes<double>::Vector square_root(Lanes<double>::Vector values) {
  auto* lanes = reinterpret_cast<double*>(&values);
#if defined(__AVX__)
  for (size_t i = 0; i < 8; i += 4) _mm256_storeu_pd(lanes + i, _mm256_sqrt_pd(_mm256_loadu_pd(lanes + i)));
#elif defined(__SSE2__)
  for (size_t i = 0; i < 8; i += 2) _mm_storeu_pd(lanes + i, _mm_sqrt_pd(_mm_loadu_pd(lanes + i)));
#elif defined(__aarch64__)
  for (size_t i = 0; i < 8; i += 2) vst1q_f64(lanes + i, vsqrtq_f64(vld1q_f64(lanes + i)));
#else
  for (size_t i = 0; i < 8; ++i) lanes[i] = __builtin_sqrt(lanes[i]);
#endif
  return values;
}

}  // namespace lth_fast::LTH_FAST_ISA
