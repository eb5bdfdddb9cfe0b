// The kernels of one instruction set, as plain function pointers.
//
// Torch-free and free of std containers on purpose: this header is compiled with -mavx512 and the like, and an inline
// function of the standard library compiled there may be picked by the linker for the baseline code as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lth_fast {

// A panel of the columns of a sparse matrix. The line at place p, order[p], has the survivors starts[p] to starts[p +
// 1] there, in ascending order, and `indices` are their columns. From the first place that a kernel is given, places
// come in pairs of which the second has no fewer survivors than the first.
template <typename Index>
struct SparsePanel {
  const int32_t *starts, *order;
  const Index* indices;
  const int32_t* places;  // of the survivors' values; null: they stand in the order of the survivors
  bool leads;             // the first panel: it starts the sums
  bool far;               // the values at `places` are many more than the second-level cache holds
};

// sparse_linear: a tile is [features][lanes], up to `lanes` samples with zeros behind them.
template <typename Element>
struct SparseLinearKernels {
  // Lanes of the tile that holds the next of so many samples: a whole tile, or a narrower one for the last few.
  size_t (*tile_lanes)(size_t samples);

  // Features first to last of `samples` rows of `input`, `stride` elements apart, into `tile`, and their sums over the
  // samples into `sums` (null: not wanted); and back, the sum of two tiles (null: of the first alone), with 0 for what
  // is negative where `relu`.
  void (*to_tile)(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* tile,
                  size_t lanes, Element* sums);
  void (*from_tile)(const Element* tile, const Element* second, size_t lanes, size_t first, size_t last,
                    Element* output, size_t stride, size_t samples, bool relu);

  // The same between tiles: sums = sums + second (null: nothing to add), with 0 for what is negative where `relu`.
  void (*finish_tile)(Element* sums, const Element* second, size_t count, bool relu);

  // Lines at places first to last of: output = matrix * input + bias (0 where null), all of them tiles, one panel of
  // the matrix after the other.
  void (*product_16)(const SparsePanel<int16_t>& panel, const Element* values, const Element* bias, size_t first,
                     size_t last, const Element* input, Element* output, size_t lanes);
  void (*product_32)(const SparsePanel<int32_t>& panel, const Element* values, const Element* bias, size_t first,
                     size_t last, const Element* input, Element* output, size_t lanes);

  // Lines at places first to last of: grad_values = grad_output * transpose(input) at the survivors of the panel, or +=
  // where `accumulate`.
  void (*values_grad_16)(const SparsePanel<int16_t>& panel, size_t first, size_t last, const Element* grad_output,
                         const Element* input, Element* grad_values, bool accumulate, size_t lanes);
  void (*values_grad_32)(const SparsePanel<int32_t>& panel, size_t first, size_t last, const Element* grad_output,
                         const Element* input, Element* grad_values, bool accumulate, size_t lanes);

  // Features first to last of: sums = the sum of `samples` rows of `input`, `stride` elements apart.
  void (*feature_sums)(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* sums);
};

// sparse_conv2d: the survivors of every output channel, by panels of source channels. Row r has the survivors starts[i]
// to starts[i + 1] in panel p, where i = p * rows + r; `offsets` lead from a pixel of the output to the source's pixel
// that the survivor multiplies, in elements.
struct TapRows {
  const int32_t* starts;
  size_t panels;
  size_t rows;
  const int32_t* offsets;
};

// The pixels to work on and the order to visit them in, block after block. Strides are in elements.
struct TapRegion {
  size_t height, width;
  size_t block_height, block_width;
  size_t lanes;
  size_t source_row;
  size_t output_row, output_channel;
};

// sparse_conv2d: a tile holds up to `lanes` samples, innermost, with zeros behind them.
template <typename Element>
struct SparseConv2dKernels {
  size_t vector_lanes;   // `lanes` is a multiple of it
  size_t piece_vectors;  // the most vectors of a block of the product, whose height is 1

  // Planes of one channel of `samples` samples, `stride` elements apart, into `vector_lanes` lanes of a tile, with
  // zeros behind the samples: pixel i goes to places[i]; and back, with 0 for what is negative where `relu`.
  void (*to_tile)(const Element* input, size_t stride, size_t samples, size_t pixels, const int32_t* places,
                  Element* tile);
  void (*from_tile)(const Element* tile, const int32_t* places, size_t pixels, Element* output, size_t stride,
                    size_t samples, bool relu);

  // The sum of planes of one channel of `samples` samples, `stride` elements apart.
  Element (*sum)(const Element* input, size_t stride, size_t samples, size_t pixels);

  // Channels first to last of: output = sum of value * shifted source over the survivors + bias (0 where null).
  void (*product)(const TapRows& rows, const Element* values, const Element* bias, size_t first, size_t last,
                  const Element* source, Element* output, const TapRegion& region);

  // Channels first to last of: grad_values = dot product of grad_output and the shifted source, per survivor, or +=
  // where `accumulate`.
  void (*values_grad)(const TapRows& rows, size_t first, size_t last, const Element* grad_output, const Element* source,
                      Element* grad_values, bool accumulate, const TapRegion& region);
};

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
// Room behind the keys a scan collects: it may write sixteen lanes at a time.
constexpr size_t kMagnitudeSlack = 16;

template <typename Key>
struct MagnitudeKernels {
  // `mask` holds a bool per byte, any value but 0 is true; null: every weight survives. The keys inside the window are
  // written to `inside`, in any order; it has room for count + kMagnitudeSlack.
  MagnitudeCounts<Key> (*scan)(const Key* weights, const uint8_t* mask, size_t count, MagnitudeWindow<Key> window,
                               Key* inside);
  // The same, and new_mask = survives and key > guess. Of the keys inside the window, `places` receives the numbers of
  // their weights; it has as much room.
  MagnitudeCounts<Key> (*scan_and_prune)(const Key* weights, const uint8_t* mask, size_t count,
                                         MagnitudeWindow<Key> window, Key* inside, Key guess, int32_t* places,
                                         uint8_t* new_mask, bool past_caches);
  // new_mask = survives and key > threshold. Returns how many survivors have the key `threshold`. Both may write the
  // mask past the caches, where nobody reads it soon.
  size_t (*prune)(const Key* weights, const uint8_t* mask, size_t count, Key threshold, uint8_t* new_mask,
                  bool past_caches);
};

// adam_step: the numbers that one step of one parameter needs, each worked out in float64.
template <typename Element>
struct AdamFactors {
  Element gradient_sign;       // -1 to maximize
  Element weight_decay;        // share of the weight added to its gradient
  Element kept;                // share of the weight that decoupled weight decay leaves
  Element gradient_share;      // of the first moment: 1 - beta1
  Element beta2;               // kept share of the second moment
  Element square_share;        // of the second moment: 1 - beta2
  Element root_of_correction;  // of the second moment's bias: sqrt(1 - beta2^step)
  Element epsilon;
  Element step_size;  // lr / (1 - beta1^step)
};

// The weights of one parameter and what belongs to them, element by element.
template <typename Element>
struct AdamTensors {
  Element* parameter;
  const Element* gradient;
  Element* exp_avg;
  Element* exp_avg_sq;
  Element* max_exp_avg_sq;  // null without AMSGrad
  const uint8_t* mask;      // bits; null: every weight survives
};

// sgd_step.
template <typename Element>
struct SgdFactors {
  Element gradient_sign;   // -1 to maximize
  Element weight_decay;    // share of the weight added to its gradient
  Element momentum;        // kept share of the momentum
  Element gradient_share;  // of the momentum: 1 - dampening
  Element step_size;
  bool nesterov;
};

template <typename Element>
struct SgdTensors {
  Element* parameter;
  const Element* gradient;
  Element* momentum;    // null without
  const uint8_t* mask;  // bits; null: every weight survives
};

struct KernelTable {
  // mask_packing: `mask` holds a bool per byte, any value but 0 is true; weight i is bit i % 8 of byte i / 8 of `bits`.
  // Bits behind `count` in the last byte are written as 0.
  void (*pack_mask)(const uint8_t* mask, uint8_t* bits, size_t count);
  void (*unpack_mask)(const uint8_t* bits, uint8_t* mask, size_t count);

  // masked_apply: output = bit ? input : +0, for elements of 2, 4 and 8 bytes. In place when output == input.
  void (*masked_apply_16)(const uint16_t* input, const uint8_t* bits, uint16_t* output, size_t count);
  void (*masked_apply_32)(const uint32_t* input, const uint8_t* bits, uint32_t* output, size_t count);
  void (*masked_apply_64)(const uint64_t* input, const uint8_t* bits, uint64_t* output, size_t count);

  // gather_images: output = (pixels - mean) * gain.
  void (*gather_pixels)(const uint8_t* pixels, float mean, float gain, float* output, size_t count);
  // The same of pixels first to last of `samples` images, into a tile of sparse_linear whose features they are.
  void (*pixels_to_tile)(const uint8_t* const* images, size_t samples, size_t first, size_t last, float mean,
                         float gain, float* tile, size_t lanes);

  SparseLinearKernels<float> sparse_linear_32;
  SparseLinearKernels<double> sparse_linear_64;
  SparseConv2dKernels<float> sparse_conv2d_32;
  SparseConv2dKernels<double> sparse_conv2d_64;
  // magnitude_threshold, for elements of 2, 4 and 8 bytes.
  MagnitudeKernels<int16_t> magnitudes_16;
  MagnitudeKernels<int32_t> magnitudes_32;
  MagnitudeKernels<int64_t> magnitudes_64;

  // adam_step and sgd_step: one step of the weights first to first + count; `first` is a multiple of 8.
  void (*adam_step_32)(const AdamTensors<float>& tensors, const AdamFactors<float>& factors, size_t first,
                       size_t count);
  void (*adam_step_64)(const AdamTensors<double>& tensors, const AdamFactors<double>& factors, size_t first,
                       size_t count);
  void (*sgd_step_32)(const SgdTensors<float>& tensors, const SgdFactors<float>& factors, size_t first, size_t count);
  void (*sgd_step_64)(const SgdTensors<double>& tensors, const SgdFactors<double>& factors, size_t first, size_t count);
};

}  // namespace lth_fast

// Every op that has kernels of its own. Each defines `void register_<op>(KernelTable&)` once per ISA.
#define LTH_FAST_FOR_EACH_KERNEL(X) \
  X(mask_packing)                   \
  X(masked_apply)                   \
  X(gather_images)                  \
  X(magnitude_threshold)            \
  X(sparse_linear)                  \
  X(sparse_conv2d)                  \
  X(adam_step)                      \
  X(sgd_step)
