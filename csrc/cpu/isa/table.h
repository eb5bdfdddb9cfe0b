// The kernels of one instruction set, as plain function pointers.
//
// Torch-free and free of std containers on purpose: this header is compiled with -mavx512 and the like, and an inline
// function of the standard library compiled there may be picked by the linker for the baseline code as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lth_fast {

struct KernelTable {
  // mask_packing: `mask` holds a bool per byte, any value but 0 is true; weight i is bit i % 8 of byte i / 8 of `bits`.
  // Bits behind `count` in the last byte are written as 0.
  void (*pack_mask)(const uint8_t* mask, uint8_t* bits, size_t count);
  void (*unpack_mask)(const uint8_t* bits, uint8_t* mask, size_t count);

  // masked_apply: output = bit ? input : +0, for elements of 2, 4 and 8 bytes. In place when output == input.
  void (*masked_apply_16)(const uint16_t* input, const uint8_t* bits, uint16_t* output, size_t count);
  void (*masked_apply_32)(const uint32_t* input, const uint8_t* bits, uint32_t* output, size_t count);
  void (*masked_apply_64)(const uint64_t* input, const uint8_t* bits, uint64_t* output, size_t count);
};

}  // namespace lth_fast

// Every op that has kernels of its own. Each defines `void register_<op>(KernelTable&)` once per ISA.
#define LTH_FAST_FOR_EACH_KERNEL(X) \
  X(mask_packing)                   \
  X(masked_apply)
