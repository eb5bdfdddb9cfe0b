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

}  // namespace lth_fast::LTH_FAST_ISA
