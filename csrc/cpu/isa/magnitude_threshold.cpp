// One pass over weights: count the magnitudes below a window and collect those inside it, or write the mask of the
// magnitudes above a threshold.
//
// The key of a magnitude is its bit pattern without the sign, compared as an integer: among the finite numbers of one
// format that is the order of |w|, in float16, bfloat16, float32 and float64 alike, denormals and -0 included.
// A weight pruned before has the key -1, below every magnitude.
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

template <typename Key>
using Keys = typename Lanes<Key>::Vector;

template <typename Key>
constexpr Key kWithoutSign = static_cast<Key>(~(UINT64_C(1) << (8 * sizeof(Key) - 1)));

// All bits of lane i set where mask[i] is false.
inline Lanes<int8_t>::Vector pruned_of_eight(const uint8_t* mask) {
  return *reinterpret_cast<const Lanes<int8_t>::Vector*>(mask) == 0;
}

template <typename Key, bool masked>
inline Key load_key(const Key* weights, const uint8_t* mask, size_t i) {
  const Key key = weights[i] & kWithoutSign<Key>;
  if constexpr (masked) return mask[i] != 0 ? key : Key{-1};
  return key;
}

template <typename Key, bool masked>
inline Keys<Key> load_eight_keys(const Key* weights, const uint8_t* mask, size_t i) {
  const Keys<Key> keys = *reinterpret_cast<const Keys<Key>*>(weights + i) & kWithoutSign<Key>;
  if constexpr (masked) {
    return keys | __builtin_convertvector(pruned_of_eight(mask + i), Keys<Key>);
  }
  return keys;
}

template <bool masked>
inline size_t count_survivors_of_eight(const uint8_t* mask, size_t i) {
  if constexpr (!masked) return 8;
  const auto pruned = pruned_of_eight(mask + i);
  uint64_t bits;
  std::memcpy(&bits, &pruned, sizeof(bits));
  return 8 - static_cast<size_t>(__builtin_popcountll(bits)) / 8;
}

// Appends the chosen lanes (all bits set) to `to` and returns the new end. May write eight lanes.
template <typename Key>
inline Key* append(Keys<Key> keys, Keys<Key> chosen, Key* to) {
  const auto bytes = __builtin_convertvector(chosen, Lanes<uint8_t>::Vector);
  uint64_t rest;
  std::memcpy(&rest, &bytes, sizeof(rest));
  while (rest != 0) {
    const int lane = __builtin_ctzll(rest) / 8;
    *to++ = keys[lane];
    rest &= ~(UINT64_C(0xff) << (8 * lane));
  }
  return to;
}

#if defined(__AVX2__)
// For float32 without a branch: a few lanes in a hundred are chosen, which no branch predictor foresees.
struct LaneOrders {
  uint8_t chosen_first[256][8];
};

constexpr LaneOrders make_lane_orders() {
  LaneOrders orders{};
  for (int set = 0; set < 256; ++set) {
    int place = 0;
    for (int lane = 0; lane < 8; ++lane) {
      if ((set >> lane) & 1) orders.chosen_first[set][place++] = static_cast<uint8_t>(lane);
    }
  }
  return orders;
}

constexpr LaneOrders kLaneOrders = make_lane_orders();

template <>
inline int32_t* append<int32_t>(Keys<int32_t> keys, Keys<int32_t> chosen, int32_t* to) {
  const int set = _mm256_movemask_ps(reinterpret_cast<__m256>(chosen));
  const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLaneOrders.chosen_first[set]));
  const __m256i packed = _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(keys), _mm256_cvtepu8_epi32(order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
  return to + __builtin_popcount(static_cast<unsigned>(set));
}
#endif

template <typename Key, bool masked>
MagnitudeCounts<Key> scan(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                          Key* inside) {
  Keys<Key> lanes_below = {}, lanes_largest = {};
  Key* end = inside;
  size_t survivors = 0;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const Keys<Key> keys = load_eight_keys<Key, masked>(weights, mask, i);
    const Keys<Key> is_below = keys < window.low;
    lanes_below -= is_below;
    lanes_largest = keys > lanes_largest ? keys : lanes_largest;
    survivors += count_survivors_of_eight<masked>(mask, i);
    end = append<Key>(keys, ~is_below & (keys <= window.high), end);
  }
  Key largest = 0;
  int64_t below = 0;
  for (int lane = 0; lane < 8; ++lane) {
    below += lanes_below[lane];
    largest = lanes_largest[lane] > largest ? lanes_largest[lane] : largest;
  }
  for (; i < count; ++i) {
    const Key key = load_key<Key, masked>(weights, mask, i);
    below += key < window.low;
    largest = key > largest ? key : largest;
    survivors += !masked || mask[i] != 0;
    if (key >= window.low && key <= window.high) *end++ = key;
  }
  // The keys of pruned weights were counted as below.
  return {static_cast<int64_t>(survivors), below - static_cast<int64_t>(count - survivors), end - inside, largest};
}

template <typename Key, bool masked>
size_t prune(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask) {
  Key ties = 0;
  for (size_t i = 0; i < count; ++i) {
    const Key key = load_key<Key, masked>(weights, mask, i);
    new_mask[i] = key > threshold;
    ties = static_cast<Key>(ties + (key == threshold));
  }
  return static_cast<size_t>(ties);
}

template <typename Key>
MagnitudeCounts<Key> scan_magnitudes(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                                     Key* inside) {
  return mask == nullptr ? scan<Key, false>(weights, mask, count, window, inside)
                         : scan<Key, true>(weights, mask, count, window, inside);
}

template <typename Key>
size_t prune_magnitudes(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask) {
  return mask == nullptr ? prune<Key, false>(weights, mask, count, threshold, new_mask)
                         : prune<Key, true>(weights, mask, count, threshold, new_mask);
}

}  // namespace

void register_magnitude_threshold(KernelTable& table) {
  table.magnitudes_16 = {scan_magnitudes<int16_t>, prune_magnitudes<int16_t>};
  table.magnitudes_32 = {scan_magnitudes<int32_t>, prune_magnitudes<int32_t>};
  table.magnitudes_64 = {scan_magnitudes<int64_t>, prune_magnitudes<int64_t>};
}

}  // namespace lth_fast::LTH_FAST_ISA
