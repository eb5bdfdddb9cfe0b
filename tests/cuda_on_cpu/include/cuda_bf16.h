#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float number) {
    uint32_t word;
    std::memcpy(&word, &number, sizeof(word));
    const bool is_nan = number != number;
    bits =
        static_cast<uint16_t>(is_nan ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);  // to nearest, ties to even
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float number;
    std::memcpy(&number, &word, sizeof(number));
    return number;
  }
  uint16_t bits;
};
