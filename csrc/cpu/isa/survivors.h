// Eight weights at a time under their mask, for the optimizer steps.
#pragma once

#include <cstring>

#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {

// The unsigned integer as wide as the element.
template <typename Element>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <typename Element>
using Eight = typename Lanes<Element>::Vector;

// An exact +0 in every lane whose bit is 0, whatever stood there.
template <typename Element>
inline Eight<Element> zero_pruned(Eight<Element> values, uint8_t bits) {
  using Bits = typename BitsOf<Element>::type;
  return reinterpret_cast<Eight<Element>>(reinterpret_cast<Eight<Bits>>(values) & Lanes<Bits>::select(bits));
}

// `count` of eight elements, zeros behind them.
template <typename Element>
inline Eight<Element> load(const Element* from, size_t count) {
  if (count == 8) return *reinterpret_cast<const Eight<Element>*>(from);
  Element lanes[8] = {};
  std::memcpy(lanes, from, count * sizeof(Element));
  return *reinterpret_cast<const Eight<Element>*>(lanes);
}

template <typename Element>
inline void store(Element* to, Eight<Element> values, size_t count) {
  if (count == 8) {
    *reinterpret_cast<Eight<Element>*>(to) = values;
  } else {
    std::memcpy(to, &values, count * sizeof(Element));
  }
}

// Calls eight(at, count) for the weights first to first + count, eight at a time; of a masked tensor it calls
// clear(at), for eight weights, where a whole run of kRun weights is pruned. A look at every byte of the mask would not
// pay: from density 0.05 to 0.2 the branch is mispredicted too often.
constexpr size_t kRun = 32;

template <typename EightWeights, typename Clear>
inline void for_each_eight(const uint8_t* mask, size_t first, size_t count, const EightWeights& eight,
                           const Clear& clear) {
  size_t at = first;
  const size_t end = first + count;
  if (mask != nullptr) {
    for (; at + kRun <= end; at += kRun) {
      uint32_t bits;
      static_assert(8 * sizeof(bits) == kRun);
      std::memcpy(&bits, mask + at / 8, sizeof(bits));
      if (bits == 0) {
        for (size_t i = 0; i < kRun; i += 8) clear(at + i);
      } else {
        for (size_t i = 0; i < kRun; i += 8) eight(at + i, 8);
      }
    }
  }
  for (; at + 8 <= end; at += 8) eight(at, 8);
  if (at < end) eight(at, end - at);
}

}  // namespace lth_fast::LTH_FAST_ISA
