// Zero what the mask prunes. Selecting (and) instead of multiplying: a NaN or an infinity at a pruned place becomes an
// exact +0 as well, and the result does not depend on the element type.
#include <cstring>

#include "intrinsics.h"
#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

#if defined(__AVX512F__)
// 64 bytes of weights for as many bits of the mask, which is the mask of the load: how many weights that were.
inline size_t apply_to_registers(const uint16_t* input, const uint8_t* bits, uint16_t* output, size_t count) {
  size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __mmask32 mask;
    std::memcpy(&mask, bits + i / 8, sizeof(mask));
    _mm512_storeu_si512(output + i, _mm512_maskz_loadu_epi16(mask, input + i));
  }
  return i;
}

inline size_t apply_to_registers(const uint32_t* input, const uint8_t* bits, uint32_t* output, size_t count) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __mmask16 mask;
    std::memcpy(&mask, bits + i / 8, sizeof(mask));
    _mm512_storeu_si512(output + i, _mm512_maskz_loadu_epi32(mask, input + i));
  }
  return i;
}

inline size_t apply_to_registers(const uint64_t* input, const uint8_t* bits, uint64_t* output, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm512_storeu_si512(output + i, _mm512_maskz_loadu_epi64(bits[i / 8], input + i));
  }
  return i;
}
#else
template <typename Element>
size_t apply_to_registers(const Element*, const uint8_t*, Element*, size_t) {
  return 0;
}
#endif

template <typename Element>
void masked_apply(const Element* input, const uint8_t* bits, Element* output, size_t count) {
  using Vector = typename Lanes<Element>::Vector;
  const size_t done = apply_to_registers(input, bits, output, count), whole = count / 8;
  for (size_t i = done / 8; i < whole; ++i) {
    const Vector values = *reinterpret_cast<const Vector*>(input + 8 * i);
    *reinterpret_cast<Vector*>(output + 8 * i) = values & Lanes<Element>::select(bits[i]);
  }
  for (size_t i = 8 * whole; i < count; ++i) {
    const bool survives = (bits[i / 8] >> (i % 8)) & 1;
    output[i] = survives ? input[i] : Element{0};
  }
}

}  // namespace

void register_masked_apply(KernelTable& table) {
  table.masked_apply_16 = masked_apply<uint16_t>;
  table.masked_apply_32 = masked_apply<uint32_t>;
  table.masked_apply_64 = masked_apply<uint64_t>;
}

}  // namespace lth_fast::LTH_FAST_ISA
