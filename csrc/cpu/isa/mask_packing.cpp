// Bool bytes to bits and back, eight weights a step.
#include <cstring>

#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

inline uint8_t pack_eight(const uint8_t* mask) {
  uint64_t bytes;
  std::memcpy(&bytes, mask, sizeof(bytes));
  // Any byte but 0 is true in torch (a uint8 tensor viewed as bool keeps its bytes): make it 1. The addition carries
  // a set bit of the lower seven into the eighth and never out of its byte.
  constexpr uint64_t lower_seven = UINT64_C(0x7f7f7f7f7f7f7f7f);
  bytes = ((((bytes & lower_seven) + lower_seven) | bytes) & ~lower_seven) >> 7;
  // The multiplication gathers the lowest bits of the eight bytes in the highest byte, in order.
  return static_cast<uint8_t>((bytes * UINT64_C(0x0102040810204080)) >> 56);
}

void pack_mask(const uint8_t* mask, uint8_t* bits, size_t count) {
  const size_t whole = count / 8;
  for (size_t i = 0; i < whole; ++i) bits[i] = pack_eight(mask + 8 * i);
  const size_t rest = count % 8;
  if (rest == 0) return;
  uint8_t tail[8] = {};
  std::memcpy(tail, mask + 8 * whole, rest);
  bits[whole] = pack_eight(tail);
}

void unpack_mask(const uint8_t* bits, uint8_t* mask, size_t count) {
  using Bytes = Lanes<uint8_t>;
  const size_t whole = count / 8;
  for (size_t i = 0; i < whole; ++i) {
    const Bytes::Vector lanes = Bytes::select(bits[i]) & 1;
    std::memcpy(mask + 8 * i, &lanes, sizeof(lanes));
  }
  for (size_t i = 8 * whole; i < count; ++i) mask[i] = (bits[i / 8] >> (i % 8)) & 1;
}

}  // namespace

void register_mask_packing(KernelTable& table) {
  table.pack_mask = pack_mask;
  table.unpack_mask = unpack_mask;
}

}  // namespace lth_fast::LTH_FAST_ISA
