// Convolution over the survivors of a mask, on tiles of samples.
//
// A tile holds `lanes` samples, [rows of pixels][channels][pixels of a row][lanes], with the zeros of the padding
// around each plane: the samples lie innermost, so one survivor meets whole vectors of them, and a survivor is one
// constant offset from a pixel of the output to the pixel of the source that it multiplies. The product keeps a piece
// of one output row in registers while the survivors of that output channel pass by; the gradient of the values keeps
// several survivors' sums in registers while pixels pass by. The source channels are cut into panels: all output
// channels visit one panel of one piece while it stays in cache, before the next one. The sums of a panel begin at zero
// and are added to those of the panels before it, so that rounding errors grow with the numbers of survivors in a panel
// and of panels, not with their product.
#include "eight_by_eight.h"
#include "first_lanes.h"
#include "flush_denormals.h"
#include "sixteen_by_sixteen.h"
#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

// Vectors of a piece of an output row: as many as there are registers, but for the weight and one to spare.
#if defined(__AVX512F__)
constexpr size_t kPiece = 28;
#elif defined(__AVX2__)
constexpr size_t kPiece = 14;
#else
constexpr size_t kPiece = 6;  // a vector is a pair of registers
#endif

template <typename Element>
using Eight = typename Lanes<Element>::Vector;

// ---- planes to tiles and back: a vector of samples at a time, in squares of pixels by samples ----

// Squares from pixel `first` on, while they are whole; returns the pixel behind them.
template <typename Square, typename Element>
size_t squares_to_tile(const Element* input, size_t stride, size_t samples, size_t first, size_t pixels,
                       const int32_t* places, Element* tile) {
  using Vector = typename Square::Vector;
  size_t pixel = first;
  for (; pixel + Square::kSide <= pixels; pixel += Square::kSide) {
    Vector square[Square::kSide];
    for (size_t i = 0; i < Square::kSide; ++i) {
      square[i] = i < samples ? *reinterpret_cast<const Vector*>(input + i * stride + pixel) : Vector{};
    }
    Square::transpose(square);
    for (size_t i = 0; i < Square::kSide; ++i) *reinterpret_cast<Vector*>(tile + places[pixel + i]) = square[i];
  }
  return pixel;
}

template <typename Square, typename Element>
size_t squares_from_tile(const Element* tile, const int32_t* places, size_t first, size_t pixels, Element* output,
                         size_t stride, size_t samples, bool relu) {
  using Vector = typename Square::Vector;
  size_t pixel = first;
  for (; pixel + Square::kSide <= pixels; pixel += Square::kSide) {
    Vector square[Square::kSide];
    for (size_t i = 0; i < Square::kSide; ++i) square[i] = *reinterpret_cast<const Vector*>(tile + places[pixel + i]);
    Square::transpose(square);
    if (relu) Square::positive_part(square);
    for (size_t i = 0; i < Square::kSide; ++i) {
      if (i < samples) *reinterpret_cast<Vector*>(output + i * stride + pixel) = square[i];
    }
  }
  return pixel;
}

// A line of the cache that is read and written as a whole is touched once only: planes of images lie multiples of 4 KiB
// apart, and their lines would push each other out before a second look.
template <typename Element>
constexpr bool kWholeLines = Register<Element>::kWidth == 16;

template <typename Element>
void to_tile(const Element* input, size_t stride, size_t samples, size_t pixels, const int32_t* places, Element* tile) {
  size_t begin = 0;
#if defined(__AVX512F__)
  if constexpr (kWholeLines<Element>) {
    begin = squares_to_tile<SixteenBySixteen>(input, stride, samples, begin, pixels, places, tile);
  }
#endif
  for (size_t lane = 0; lane < Register<Element>::kWidth; lane += 8, input += 8 * stride, tile += 8) {
    const size_t present = samples < lane ? 0 : samples - lane;
    size_t pixel = squares_to_tile<EightByEight<Element>>(input, stride, present, begin, pixels, places, tile);
    for (; pixel < pixels; ++pixel) {
      for (size_t i = 0; i < 8; ++i) tile[places[pixel] + i] = i < present ? input[i * stride + pixel] : 0;
    }
  }
}

template <typename Element>
void from_tile(const Element* tile, const int32_t* places, size_t pixels, Element* output, size_t stride,
               size_t samples, bool relu) {
  size_t begin = 0;
#if defined(__AVX512F__)
  if constexpr (kWholeLines<Element>) {
    begin = squares_from_tile<SixteenBySixteen>(tile, places, begin, pixels, output, stride, samples, relu);
  }
#endif
  for (size_t lane = 0; lane < samples; lane += 8, tile += 8, output += 8 * stride) {
    const size_t present = samples - lane < 8 ? samples - lane : 8;
    size_t pixel = squares_from_tile<EightByEight<Element>>(tile, places, begin, pixels, output, stride, present, relu);
    for (; pixel < pixels; ++pixel) {
      for (size_t i = 0; i < present; ++i) {
        const Element element = tile[places[pixel] + i];
        output[i * stride + pixel] = relu && element < 0 ? 0 : element;
      }
    }
  }
}

// ---- the gradient of the bias ----

// In several chains.
template <typename Element>
Element sum_of_few(const Element* pixels, size_t count) {
  using Vector = typename Register<Element>::Vector;
  constexpr size_t width = Register<Element>::kWidth, chains = 4;
  Vector sums[chains] = {};
  size_t pixel = 0;
  for (; pixel + chains * width <= count; pixel += chains * width) {
    const auto* from = reinterpret_cast<const Vector*>(pixels + pixel);
    for (size_t chain = 0; chain < chains; ++chain) sums[chain] += from[chain];
  }
  const Vector of_chains = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Element sum = 0;
  for (size_t lane = 0; lane < width; ++lane) sum += of_chains[lane];
  for (; pixel < count; ++pixel) sum += pixels[pixel];
  return sum;
}

// Plane by plane, and a plane by parts: rounding errors grow with the numbers of each, not with their product.
template <typename Element>
Element sum(const Element* input, size_t stride, size_t samples, size_t pixels) {
  const FlushDenormals flush;
  constexpr size_t few = 4096;
  Element total = 0;
  for (size_t sample = 0; sample < samples; ++sample) {
    const Element* plane = input + sample * stride;
    Element of_plane = 0;
    for (size_t pixel = 0; pixel < pixels; pixel += few) {
      of_plane += sum_of_few(plane + pixel, pixels - pixel < few ? pixels - pixel : few);
    }
    total += of_plane;
  }
  return total;
}

// ---- the product ----

// One piece of one output row, of the channels first to last, over one panel.
template <typename Element, size_t kVectors>
void product_piece(const TapRows& rows, size_t panel, const Element* values, const Element* bias, size_t first,
                   size_t last, const Element* source, Element* output, size_t channel_stride) {
  using Vector = typename Register<Element>::Vector;
  const int32_t* starts = rows.starts + panel * rows.rows;
  for (size_t row = first; row < last; ++row) {
    auto* to = reinterpret_cast<Vector*>(output + row * channel_stride);
    Vector sum[kVectors];
    const Element start = panel == 0 && bias != nullptr ? bias[row] : Element{0};
    for (size_t k = 0; k < kVectors; ++k) sum[k] = start - Vector{};
    for (int32_t survivor = starts[row]; survivor < starts[row + 1]; ++survivor) {
      const auto* from = reinterpret_cast<const Vector*>(source + rows.offsets[survivor]);
      const Element value = values[survivor];
      for (size_t k = 0; k < kVectors; ++k) sum[k] += value * from[k];
    }
    if (panel == 0) {
      for (size_t k = 0; k < kVectors; ++k) to[k] = sum[k];
    } else {
      for (size_t k = 0; k < kVectors; ++k) to[k] += sum[k];
    }
  }
}

// The function for a piece of `vectors` vectors, 1 to kPiece.
template <typename Element, size_t kVectors = kPiece>
auto product_of(size_t vectors) {
  if constexpr (kVectors == 1) {
    return product_piece<Element, 1>;
  } else {
    return vectors == kVectors ? product_piece<Element, kVectors> : product_of<Element, kVectors - 1>(vectors);
  }
}

template <typename Element>
void product(const TapRows& rows, const Element* values, const Element* bias, size_t first, size_t last,
             const Element* source, Element* output, const TapRegion& region) {
  const FlushDenormals flush;
  constexpr size_t width = Register<Element>::kWidth;
  for (size_t y = 0; y < region.height; ++y) {
    for (size_t x = 0; x < region.width; x += region.block_width) {
      const size_t pixels = region.width - x < region.block_width ? region.width - x : region.block_width;
      const auto piece = product_of<Element>(pixels * region.lanes / width);
      const Element* from = source + y * region.source_row + x * region.lanes;
      Element* to = output + y * region.output_row + x * region.lanes;
      for (size_t panel = 0; panel < rows.panels; ++panel) {
        piece(rows, panel, values, bias, first, last, from, to, region.output_channel);
      }
    }
  }
}

// ---- the gradient of the values: a dot product of an output plane and a shifted source plane per survivor ----

// The sums of the lanes of the first kCount of eight vectors, written to `to` or added to what is there.
template <typename Element, size_t kCount>
inline void put_sums(const typename Register<Element>::Vector (&vectors)[8], Element* to, bool accumulate) {
#if defined(__AVX512F__)
  const Eight<Element> sums = sums_of_eight<Element>(vectors);
#else
  Eight<Element> lanes[8];
  for (size_t i = 0; i < 8; ++i) lanes[i] = reinterpret_cast<const Eight<Element>&>(vectors[i]);
  const Eight<Element> sums = EightByEight<Element>::sums(lanes);
#endif
  if constexpr (kCount == 8) {
    auto* eight = reinterpret_cast<Eight<Element>*>(to);
    *eight = accumulate ? *eight + sums : sums;
  } else {
#if defined(__AVX512F__)
    store_first(sums, kCount, to, accumulate);
#else
    for (size_t i = 0; i < kCount; ++i) to[i] = accumulate ? to[i] + sums[i] : sums[i];
#endif
  }
}

struct Block {
  size_t height, vectors;
  size_t source_row, output_row;
};

template <typename Element, size_t kSurvivors>
void dot_block(const Element* gradient, const Element* source, const int32_t* offsets, const Block& block,
               Element* grad_values, bool accumulate) {
  using Vector = typename Register<Element>::Vector;
  const Vector* from[kSurvivors];
  Vector sum[8] = {};
  for (size_t s = 0; s < kSurvivors; ++s) from[s] = reinterpret_cast<const Vector*>(source + offsets[s]);
  const auto* with = reinterpret_cast<const Vector*>(gradient);
  for (size_t y = 0; y < block.height; ++y) {
    for (size_t x = 0; x < block.vectors; ++x) {
      const Vector factor = with[x];
      for (size_t s = 0; s < kSurvivors; ++s) sum[s] += factor * from[s][x];
    }
    with += block.output_row;
    for (size_t s = 0; s < kSurvivors; ++s) from[s] += block.source_row;
  }
  put_sums<Element, kSurvivors>(sum, grad_values, accumulate);
}

template <typename Element, size_t kSurvivors = 8>
auto dot_of(size_t survivors) {
  if constexpr (kSurvivors == 1) {
    return dot_block<Element, 1>;
  } else {
    return survivors == kSurvivors ? dot_block<Element, kSurvivors> : dot_of<Element, kSurvivors - 1>(survivors);
  }
}

template <typename Element>
void values_grad(const TapRows& rows, size_t first, size_t last, const Element* gradient, const Element* source,
                 Element* grad_values, bool accumulate, const TapRegion& region) {
  const FlushDenormals flush;
  constexpr size_t width = Register<Element>::kWidth;
  for (size_t y = 0; y < region.height; y += region.block_height) {
    for (size_t x = 0; x < region.width; x += region.block_width) {
      const size_t pixels = region.width - x < region.block_width ? region.width - x : region.block_width;
      const Block block = {region.height - y < region.block_height ? region.height - y : region.block_height,
                           pixels * region.lanes / width, region.source_row / width, region.output_row / width};
      const Element* from = source + y * region.source_row + x * region.lanes;
      const Element* with = gradient + y * region.output_row + x * region.lanes;
      const bool add = accumulate || y > 0 || x > 0;
      for (size_t panel = 0; panel < rows.panels; ++panel) {
        const int32_t* starts = rows.starts + panel * rows.rows;
        for (size_t row = first; row < last; ++row) {
          const Element* row_gradient = with + row * region.output_channel;
          ptrdiff_t survivor = starts[row];
          for (; survivor + 8 <= starts[row + 1]; survivor += 8) {
            dot_block<Element, 8>(row_gradient, from, rows.offsets + survivor, block, grad_values + survivor, add);
          }
          if (const ptrdiff_t rest = starts[row + 1] - survivor; rest > 0) {
            dot_of<Element>(rest)(row_gradient, from, rows.offsets + survivor, block, grad_values + survivor, add);
          }
        }
      }
    }
  }
}

template <typename Element>
SparseConv2dKernels<Element> kernels() {
  return {Register<Element>::kWidth, kPiece, to_tile<Element>, from_tile<Element>, sum<Element>, product<Element>,
          values_grad<Element>};
}

}  // namespace

void register_sparse_conv2d(KernelTable& table) {
  table.sparse_conv2d_32 = kernels<float>();
  table.sparse_conv2d_64 = kernels<double>();
}

}  // namespace lth_fast::LTH_FAST_ISA
