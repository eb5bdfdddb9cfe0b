// The kernels of one instruction set, as plain function pointers.
//
// Torch-free and free of std containers on purpose: this header is compiled with -mavx512 and the like, and an inline
// function of the standard library compiled there may be picked by the linker for the baseline code as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lth_fast {

// magnitude_threshold: a key is the bit pattern of a magnitude, as a signed integer of the weight's size.
template <typename Key>
struct MagnitudeWindow {
  Key low, high;  // both ends are inside
};

template <typename Key>
struct MagnitudeCounts {
  int64_t survivors;
  int64_t below;   // survivors under the window
  int64_t inside;  // survivors in the window
  Key largest;     // of the survivors; 0 when there are none
};

// The most weights one call takes: few enough for the counters of 16-bit lanes.
constexpr size_t kMagnitudeChunk = size_t{1} << 14;
// Room behind the keys a scan collects: it may write eight lanes at a time.
constexpr size_t kMagnitudeSlack = 8;

template <typename Key>
struct MagnitudeKernels {
  // `mask` holds a bool per byte, any value but 0 is true; null: every weight survives. The keys inside the window are
  // written to `inside`, in order, which has room for count + kMagnitudeSlack.
  MagnitudeCounts<Key> (*scan)(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                               Key* inside);
  // new_mask = survives and key > threshold. Returns how many survivors have the key `threshold`.
  size_t (*prune)(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask);
};

struct KernelTable {
  // mask_packing: `mask` holds 0 or 1 per byte; weight i is bit i % 8 of byte i / 8 of `bits`.
  // Bits behind `count` in the last byte are written as 0.
  void (*pack_mask)(const uint8_t* mask, uint8_t* bits, size_t count);
  void (*unpack_mask)(const uint8_t* bits, uint8_t* mask, size_t count);

  // masked_apply: output = bit ? input : +0, for elements of 2, 4 and 8 bytes. In place when output == input.
  void (*masked_apply_16)(const uint16_t* input, const uint8_t* bits, uint16_t* output, size_t count);
  void (*masked_apply_32)(const uint32_t* input, const uint8_t* bits, uint32_t* output, size_t count);
  void (*masked_apply_64)(const uint64_t* input, const uint8_t* bits, uint64_t* output, size_t count);

  // magnitude_threshold, for elements of 2, 4 and 8 bytes.
  MagnitudeKernels<int16_t> magnitudes_16;
  MagnitudeKernels<int32_t> magnitudes_32;
  MagnitudeKernels<int64_t> magnitudes_64;
};

}  // namespace lth_fast

// Every op that has kernels of its own. Each defines `void register_<op>(KernelTable&)` once per ISA.
#define LTH_FAST_FOR_EACH_KERNEL(X) \
  X(mask_packing)                   \
  X(masked_apply)                   \
  X(magnitude_threshold)
