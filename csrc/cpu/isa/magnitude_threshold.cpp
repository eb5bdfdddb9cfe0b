// One pass over weights: count the magnitudes below a window and collect those inside it, or write the mask of the
// magnitudes above a threshold, or both.
//
// The key of a magnitude is its bit pattern without the sign, compared as an integer: among the finite numbers of one
// format that is the order of |w|, in float16, bfloat16, float32 and float64 alike, denormals and -0 included.
// A weight pruned before has the key -1, below every magnitude.
#include <cstring>

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "intrinsics.h"
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

// Calls work(first) for blocks of kBlock weights and returns where the rest, too short for a block of each part,
// begins.
//
// Where a processor fetches ahead of a reader to the end of a page of memory and no further (Zen 3), a single reader
// waits at every page; of four, in as many parts of the chunk, the others keep the memory busy meanwhile. It took a
// third off the time of weights that lie in memory. Larger blocks would let the readers wait one after the other again.
// Processors with AVX-512 follow a single reader: on Zen 5 four took half as long again.
#if defined(__AVX512F__)
constexpr size_t kReaders = 1;
#else
constexpr size_t kReaders = 4;
#endif

template <typename Work>
inline size_t for_each_block(size_t count, const Work& work) {
  const size_t part = count / (kReaders * kBlock) * kBlock;
  for (size_t i = 0; i < part; i += kBlock) {
    for (size_t reader = 0; reader < kReaders; ++reader) work(reader * part + i);
  }
  return kReaders * part;
}

// Where a scan puts the mask of the magnitudes above a guess, and the places of the keys that it collects.
template <typename Key>
struct GuessedMask {
  Key guess;
  const Key* inside;
  int32_t* places;  // of inside[i]: places[i]
  uint8_t* new_mask;
  bool streams;

  int32_t* places_at(const Key* end) const { return places + (end - inside); }
};

// What a scan has counted. Pruned weights, whose keys are negative, are below the window too.
template <typename Key>
struct Totals {
  int64_t below, pruned;
  Key largest;
};

// Counts lane by lane, and collects.
template <typename Key, bool masked>
class Counter {
 public:
  explicit Counter(MagnitudeWindow<Key> window) : low_(window.low), above_(static_cast<Key>(window.high + 1)) {}

  // kBlock weights from `first` on; returns the new end of the keys inside the window. `guessed` may be null if not
  // kGuessed.
  template <bool kGuessed>
  inline Key* count(const Key* weights, const uint8_t* mask, size_t first, Key* end, const GuessedMask<Key>* guessed) {
    for (size_t i = first; i < first + kBlock; i += 8) {
      const Keys<Key> keys = load_eight_keys<Key, masked>(weights, mask, i);
      const Keys<Key> is_below = keys < low_;
      below_ -= is_below;
      largest_ = keys > largest_ ? keys : largest_;
      if constexpr (masked) pruned_ -= keys < 0;
      const Keys<Key> inside = ~is_below & (keys < above_);
      if constexpr (kGuessed) {
        const Keys<int32_t> places = static_cast<int32_t>(i) + Keys<int32_t>{0, 1, 2, 3, 4, 5, 6, 7};
        append<int32_t>(places, __builtin_convertvector(inside, Keys<int32_t>), guessed->places_at(end));
        const auto survives = __builtin_convertvector(keys > guessed->guess, Lanes<uint8_t>::Vector) & uint8_t{1};
        *reinterpret_cast<Lanes<uint8_t>::Vector*>(guessed->new_mask + i) = survives;
      }
      end = append<Key>(keys, inside, end);
    }
    return end;
  }

  Totals<Key> totals() const {
    Totals<Key> totals{};
    for (int lane = 0; lane < 8; ++lane) {
      totals.below += below_[lane];
      totals.pruned += pruned_[lane];
      totals.largest = largest_[lane] > totals.largest ? largest_[lane] : totals.largest;
    }
    return totals;
  }

 private:
  Key low_, above_;
  Keys<Key> below_ = {}, pruned_ = {}, largest_ = {};
};

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
struct PruneBlock {
  static inline Key of(const Key* weights, const uint8_t* mask, Key threshold, uint8_t* new_mask, bool) {
    return prune_some<Key, masked>(weights, mask, kBlock, threshold, new_mask);
  }
};

inline bool begins_cache_line(const uint8_t* memory) { return reinterpret_cast<uintptr_t>(memory) % 64 == 0; }

#if defined(__AVX512F__)
// For float32 sixteen weights at a time: what is chosen is a bit of each, and so is what survives.

inline __m512i sixteen_keys(const int32_t* weights) {
  return _mm512_and_si512(_mm512_loadu_si512(weights), _mm512_set1_epi32(kWithoutSign<int32_t>));
}

template <bool masked>
inline __mmask16 survivors_of_sixteen(const uint8_t* mask) {
  if constexpr (masked) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  return 0xffff;
}

// Writes the chosen lanes to `to`. Through a register: written straight to memory, compressed lanes cost Zen a hundred
// cycles. Mostly none or one is chosen, and a narrow store crosses fewer cache lines.
inline void append(__m512i lanes, __mmask16 chosen, int number, int32_t* to) {
  const __m512i packed = _mm512_maskz_compress_epi32(chosen, lanes);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(packed));
  if (__builtin_expect(number > 4, 0)) _mm512_storeu_si512(to, packed);
}

// A bool for each bit. Where it is written past the caches, `mask` begins a cache line.
inline void write_mask(uint64_t bits, uint8_t* mask, bool past_caches) {
  const __m512i bytes = _mm512_maskz_set1_epi8(bits, 1);
  if (past_caches) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(mask), bytes);
  } else {
    _mm512_storeu_si512(mask, bytes);
  }
}

template <bool masked>
class Counter<int32_t, masked> {
 public:
  explicit Counter(MagnitudeWindow<int32_t> window)
      : low_(_mm512_set1_epi32(window.low)), high_(_mm512_set1_epi32(window.high)) {}

  template <bool kGuessed>
  inline int32_t* count(const int32_t* weights, const uint8_t* mask, size_t first, int32_t* end,
                        const GuessedMask<int32_t>* guessed) {
    const __m512i one = _mm512_set1_epi32(1);
    uint64_t above_guess = 0;
    for (size_t i = first; i < first + kBlock; i += 16) {
      const __m512i keys = sixteen_keys(weights + i);
      const __mmask16 survives = survivors_of_sixteen<masked>(mask + i);
      const __mmask16 from_low = _mm512_mask_cmp_epi32_mask(survives, keys, low_, _MM_CMPINT_NLT);
      const __mmask16 inside = _mm512_mask_cmp_epi32_mask(from_low, keys, high_, _MM_CMPINT_LE);
      not_below_ = _mm512_mask_add_epi32(not_below_, from_low, not_below_, one);
      if constexpr (masked) survivors_ = _mm512_mask_add_epi32(survivors_, survives, survivors_, one);
      largest_ = _mm512_mask_max_epi32(largest_, survives, largest_, keys);
      const int number = __builtin_popcount(inside);
      if constexpr (kGuessed) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        append(_mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(i))), inside, number,
               guessed->places_at(end));
        const __mmask16 above =
            _mm512_mask_cmp_epi32_mask(survives, keys, _mm512_set1_epi32(guessed->guess), _MM_CMPINT_NLE);
        above_guess |= static_cast<uint64_t>(above) << (i - first);
      }
      append(keys, inside, number, end);
      end += number;
    }
    if constexpr (kGuessed) write_mask(above_guess, guessed->new_mask + first, guessed->streams);
    counted_ += kBlock;
    return end;
  }

  Totals<int32_t> totals() const {
    const int64_t survivors = masked ? _mm512_reduce_add_epi32(survivors_) : counted_;
    return {counted_ - _mm512_reduce_add_epi32(not_below_), counted_ - survivors, _mm512_reduce_max_epi32(largest_)};
  }

 private:
  __m512i low_, high_;
  __m512i not_below_ = _mm512_setzero_si512(), survivors_ = not_below_, largest_ = not_below_;
  int64_t counted_ = 0;
};

template <bool masked>
struct PruneBlock<int32_t, masked> {
  static inline int32_t of(const int32_t* weights, const uint8_t* mask, int32_t threshold, uint8_t* new_mask,
                           bool past_caches) {
    const __m512i limit = _mm512_set1_epi32(threshold);
    static_assert(kBlock == 64);
    uint64_t survives = 0;
    int32_t ties = 0;
    for (size_t i = 0; i < kBlock; i += 16) {
      const __m512i keys = sixteen_keys(weights + i);
      const __mmask16 before = survivors_of_sixteen<masked>(mask + i);
      survives |= static_cast<uint64_t>(_mm512_mask_cmp_epi32_mask(before, keys, limit, _MM_CMPINT_NLE)) << i;
      ties += __builtin_popcount(_mm512_cmp_epi32_mask(keys, limit, _MM_CMPINT_EQ));
    }
    write_mask(survives, new_mask, past_caches);
    return ties;
  }
};
#endif

// Else another thread might read what was there before the mask was written past the caches.
inline void make_visible(bool streams) {
#if defined(__AVX512F__)
  if (streams) _mm_sfence();
#else
  (void)streams;
#endif
}

template <typename Key, bool masked, bool kGuessed>
MagnitudeCounts<Key> scan(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                          Key* inside, const GuessedMask<Key>* guessed) {
  Counter<Key, masked> counter(window);
  Key* end = inside;
  size_t i = for_each_block(
      count, [&](size_t first) { end = counter.template count<kGuessed>(weights, mask, first, end, guessed); });
  auto [below, pruned, largest] = counter.totals();
  for (; i < count; ++i) {
    const Key key = load_key<Key, masked>(weights, mask, i);
    below += key < window.low;
    largest = key > largest ? key : largest;
    pruned += key < 0;
    if constexpr (kGuessed) guessed->new_mask[i] = key > guessed->guess;
    if (key >= window.low && key <= window.high) {
      if constexpr (kGuessed) *guessed->places_at(end) = static_cast<int32_t>(i);
      *end++ = key;
    }
  }
  return {static_cast<int64_t>(count) - pruned, below - pruned, end - inside, largest};
}

template <typename Key, bool masked>
size_t prune(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask,
             bool past_caches) {
  const auto old_mask = [&](size_t first) { return masked ? mask + first : nullptr; };
  const bool streams = past_caches && begins_cache_line(new_mask);
  Key ties = 0;
  const size_t rest = for_each_block(count, [&](size_t first) {
    const Key more =
        PruneBlock<Key, masked>::of(weights + first, old_mask(first), threshold, new_mask + first, streams);
    ties = static_cast<Key>(ties + more);
  });
  const Key more = prune_some<Key, masked>(weights + rest, old_mask(rest), count - rest, threshold, new_mask + rest);
  ties = static_cast<Key>(ties + more);
  make_visible(streams);
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
  return mask == nullptr ? scan<Key, false, false>(weights, mask, count, window, inside, nullptr)
                         : scan<Key, true, false>(weights, mask, count, window, inside, nullptr);
}

template <typename Key>
MagnitudeCounts<Key> scan_and_prune(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                                    Key* inside, Key guess, int32_t* places, uint8_t* new_mask, bool past_caches) {
  const GuessedMask<Key> guessed{guess, inside, places, new_mask, past_caches && begins_cache_line(new_mask)};
  const auto counts = mask == nullptr ? scan<Key, false, true>(weights, mask, count, window, inside, &guessed)
                                      : scan<Key, true, true>(weights, mask, count, window, inside, &guessed);
  make_visible(guessed.streams);
  return counts;
}

template <typename Key>
size_t prune_magnitudes(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask,
                        bool past_caches) {
  return mask == nullptr ? prune<Key, false>(weights, mask, count, threshold, new_mask, past_caches)
                         : prune<Key, true>(weights, mask, count, threshold, new_mask, past_caches);
}

}  // namespace

void register_magnitude_threshold(KernelTable& table) {
  table.magnitudes_16 = {scan_magnitudes<int16_t>, scan_and_prune<int16_t>, prune_magnitudes<int16_t>};
  table.magnitudes_32 = {scan_magnitudes<int32_t>, scan_and_prune<int32_t>, prune_magnitudes<int32_t>};
  table.magnitudes_64 = {scan_magnitudes<int64_t>, scan_and_prune<int64_t>, prune_magnitudes<int64_t>};
}

}  // namespace lth_fast::LTH_FAST_ISA
