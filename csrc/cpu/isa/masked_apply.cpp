// Zero what the mask prunes. Selecting (and) instead of multiplying: a NaN or an infinity at a pruned place becomes an
// exact +0 as well, and the result does not depend on the element type.
#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

template <typename Element>
void masked_apply(const Element* input, const uint8_t* bits, Element* output, size_t count) {
  using Vector = typename Lanes<Element>::Vector;
  const size_t whole = count / 8;
  for (size_t i = 0; i < whole; ++i) {
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
