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

constexpr size_t kBlock = 64;

// Calls work(first) for blocks of kBlock weights and returns where the rest, too short for four blocks, begins.
//
// Four parts of the chunk are read in turn: a processor fetches ahead of a reader to the end of a page of memory and no
// further, so a single reader waits at every page; of four the others keep the memory busy meanwhile. It takes a third
// off the time of weights that lie in memory. Larger blocks would let the readers wait one after the other again.
template <typename Work>
inline size_t for_each_block(size_t count, const Work& work) {
  const size_t part = count / (4 * kBlock) * kBlock;
  for (size_t i = 0; i < part; i += kBlock) {
    for (size_t reader = 0; reader < 4; ++reader) work(reader * part + i);
  }
  return 4 * part;
}

template <typename Key, bool masked>
MagnitudeCounts<Key> scan(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                          Key* inside) {
  Keys<Key> lanes_below = {}, lanes_pruned = {}, lanes_largest = {};
  Key* end = inside;
  const Key above = static_cast<Key>(window.high + 1);
  size_t i = for_each_block(count, [&](size_t first) {
    for (size_t i = first; i < first + kBlock; i += 8) {
      const Keys<Key> keys = load_eight_keys<Key, masked>(weights, mask, i);
      const Keys<Key> is_below = keys < window.low;
      lanes_below -= is_below;
      lanes_largest = keys > lanes_largest ? keys : lanes_largest;
      if constexpr (masked) lanes_pruned -= keys < 0;
      end = append<Key>(keys, ~is_below & (keys < above), end);
    }
  });
  Key largest = 0;
  int64_t below = 0, pruned = 0;
  for (int lane = 0; lane < 8; ++lane) {
    below += lanes_below[lane];
    pruned += lanes_pruned[lane];
    largest = lanes_largest[lane] > largest ? lanes_largest[lane] : largest;
  }
  for (; i < count; ++i) {
    const Key key = load_key<Key, masked>(weights, mask, i);
    below += key < window.low;
    largest = key > largest ? key : largest;
    pruned += key < 0;
    if (key >= window.low && key <= window.high) *end++ = key;
  }
  // The keys of pruned weights were counted as below.
  return {static_cast<int64_t>(count) - pruned, below - pruned, end - inside, largest};
}

// Returns the ties, those pruned before included.
template <typename Key, bool masked>
inline Key prune_some(const Key* __restrict weights, const uint8_t* __restrict mask, size_t count, Key threshold,
                      uint8_t* __restrict new_mask) {
  Key ties = 0;
  for (size_t i = 0; i < count; ++i) {
    const Key key = weights[i] & kWithoutSign<Key>;
    uint8_t survives = key > threshold;
    if constexpr (masked) survives &= mask[i] != 0;
    new_mask[i] = survives;
    ties = static_cast<Key>(ties + (key == threshold));
  }
  return ties;
}

template <typename Key, bool masked>
size_t prune(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask) {
  Key ties = 0;
  const auto some = [&](size_t first, size_t size) {
    const uint8_t* const old_mask = masked ? mask + first : nullptr;
    const Key more = prune_some<Key, masked>(weights + first, old_mask, size, threshold, new_mask + first);
    ties = static_cast<Key>(ties + more);
  };
  const size_t rest = for_each_block(count, [&](size_t first) { some(first, kBlock); });
  some(rest, count - rest);
  // Mostly there is none in a chunk: it is faster to look again, where there are, than at the mask of every weight.
  if (masked && ties != 0) {
    ties = 0;
    for (size_t i = 0; i < count; ++i) {
      ties = static_cast<Key>(ties + (load_key<Key, masked>(weights, mask, i) == threshold));
    }
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
