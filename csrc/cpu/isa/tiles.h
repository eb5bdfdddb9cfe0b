// Samples to a tile and back, square by square: a tile is [features][lanes], the samples innermost.
#pragma once

#include <cstddef>

namespace lth_fast::LTH_FAST_ISA {

// Features that pass before the next samples. Vectors that are lines of the cache let all of them pass: every line is
// touched once, and samples are read and written from one end to the other. Of halves of lines only as many pass as the
// first-level cache holds, where the second half joins the first.
#if defined(__AVX512F__)
constexpr size_t kFeaturesPerPass = ~size_t{0};
#else
constexpr size_t kFeaturesPerPass = 64;
#endif

// Calls work(feature, lane) for squares of features first to `last` and all lanes up to `lanes`; returns the first
// feature that is in none.
template <typename Square, typename Work>
size_t for_each_square(size_t first, size_t last, size_t lanes, size_t features_per_pass, const Work& work) {
  constexpr size_t side = Square::kSide;
  const size_t end = first + (last - first) / side * side;
  while (first < end) {
    const size_t end_of_pass = end - first < features_per_pass ? end : first + features_per_pass;
    for (size_t lane = 0; lane < lanes; lane += side) {
      for (size_t feature = first; feature < end_of_pass; feature += side) work(feature, lane);
    }
    first = end_of_pass;
  }
  return end;
}

template <size_t kCount, typename Vector>
inline Vector sum_of(const Vector* vectors) {
  if constexpr (kCount == 1) {
    return vectors[0];
  } else {
    return sum_of<kCount / 2>(vectors) + sum_of<kCount / 2>(vectors + kCount / 2);
  }
}

// Features first to last of `samples` samples into `tile`, with zeros behind the samples, and their sums over the
// samples into `sums` where kSums. load(sample, feature) is the vector of that sample's features from there on. Returns
// the first feature that is in no square.
template <typename Square, bool kSums, typename Load, typename Element>
size_t squares_to_tile(const Load& load, size_t samples, size_t first, size_t last, Element* tile, size_t lanes,
                       Element* sums) {
  using Vector = typename Square::Vector;
  return for_each_square<Square>(first, last, lanes, kFeaturesPerPass, [&](size_t feature, size_t lane) {
    Vector square[Square::kSide];
    for (size_t i = 0; i < Square::kSide; ++i) {
      square[i] = lane + i < samples ? load(lane + i, feature) : Vector{};
    }
    if constexpr (kSums) {
      auto* sum = reinterpret_cast<Vector*>(sums + feature);
      const Vector here = sum_of<Square::kSide>(square);
      *sum = lane == 0 ? here : *sum + here;
    }
    Square::transpose(square);
    for (size_t i = 0; i < Square::kSide; ++i)
      *reinterpret_cast<Vector*>(tile + (feature + i) * lanes + lane) = square[i];
  });
}

}  // namespace lth_fast::LTH_FAST_ISA
