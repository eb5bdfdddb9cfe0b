// Values and indices of four survivors, with fewer loads than one for each of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "intrinsics.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {

template <typename Index>
struct FourIndices {
  static constexpr int kPerWord = 8 / sizeof(Index);
  uint64_t words[4 / kPerWord];

  static inline FourIndices load(const Index* indices) {
    FourIndices four;
    std::memcpy(four.words, indices, sizeof(four.words));
    for (uint64_t& word : four.words) asm("" : "+r"(word));  // else the compiler loads every index by itself
    return four;
  }
  // Index kNumber; it is not negative.
  template <int kNumber>
  size_t at() const {
    constexpr int kBits = 8 * sizeof(Index);
    return (words[kNumber / kPerWord] >> (kNumber % kPerWord * kBits)) & ((uint64_t{1} << kBits) - 1);
  }
};

// Four values, side by side.
template <typename Element>
struct FourValues {
  using Vector = typename Register<Element>::Vector;
  const Element* values;

  static inline FourValues load(const Element* values) { return {values}; }
  // Value kNumber in every lane.
  template <int kNumber>
  Vector spread() const {
    return values[kNumber] - Vector{};
  }
};

#if defined(__AVX512F__)

template <>
struct FourValues<float> {
  __m512 lanes;  // the first four

  static inline FourValues load(const float* values) { return {_mm512_castps128_ps512(_mm_loadu_ps(values))}; }
  template <int kNumber>
  Register<float>::Vector spread() const {
    return reinterpret_cast<Register<float>::Vector>(_mm512_permutexvar_ps(_mm512_set1_epi32(kNumber), lanes));
  }
};

template <>
struct FourValues<double> {
  __m512d lanes;

  static inline FourValues load(const double* values) { return {_mm512_castpd256_pd512(_mm256_loadu_pd(values))}; }
  template <int kNumber>
  Register<double>::Vector spread() const {
    return reinterpret_cast<Register<double>::Vector>(_mm512_permutexvar_pd(_mm512_set1_epi64(kNumber), lanes));
  }
};

#elif defined(__AVX2__)

template <>
struct FourValues<float> {
  __m256 lanes;  // in either half

  static inline FourValues load(const float* values) {
    return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(values))};
  }
  template <int kNumber>
  Register<float>::Vector spread() const {
    return reinterpret_cast<Register<float>::Vector>(_mm256_permute_ps(lanes, 0b01010101 * kNumber));
  }
};

#endif

// Four values anywhere, at the four places that are noted side by side.
template <typename Element>
struct FourScatteredValues {
  using Vector = typename Register<Element>::Vector;
  const Element* values;
  FourIndices<int32_t> places;

  template <int kNumber>
  Vector spread() const {
    return values[places.template at<kNumber>()] - Vector{};
  }
};

}  // namespace lth_fast::LTH_FAST_ISA
