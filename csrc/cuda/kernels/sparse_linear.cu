// A block holds a tile of the input in shared memory, some features by some samples, which the survivors of all its
// lines read. A warp has a few lines of the matrix, a lane of it the same few samples of every feature. Every output
// has one owner that adds in a fixed order: the same bits in every run.
#include "cuda/kernels/sparse_linear.h"

#include "cuda/kernels/launch.h"

namespace lth_fast::cuda {
namespace {

constexpr int kLines = 8;  // of a warp
constexpr unsigned kMostWarps = 16, kFewestWarps = 4;
constexpr int64_t kEnoughBlocks = 256;
constexpr int64_t kLargestGridY = 65535;
constexpr int64_t kTileBytes = 32 << 10;
// Of a lane. The sampled product sums over a warp once for all of them: the more, the cheaper.
constexpr int kProductSamples = 2, kSampledSamples = 4;

__device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Of one feature, neighbouring ones: what a lane reads at a time.
template <typename Element, int kCount>
struct alignas(kCount * sizeof(Element)) Samples {
  Element at[kCount];
};

// Zeros beyond the last sample.
template <int kCount, typename Element>
__device__ Samples<Element, kCount> load(const Element* feature, int64_t first, int64_t samples) {
  Samples<Element, kCount> loaded;
  for (int i = 0; i < kCount; ++i) loaded.at[i] = first + i < samples ? feature[first + i] : Element{0};
  return loaded;
}

template <typename Element, int kCount>
struct Tile {
  static constexpr int64_t kSamples = kWarp * kCount;
  static constexpr int64_t kFeatures = kTileBytes / (kSamples * static_cast<int64_t>(sizeof(Element)));

  Samples<Element, kCount> features[kFeatures][kWarp];

  // All threads of the block together, once all of them have read what is there; waits until it is filled.
  __device__ void fill(const Element* input, int64_t first, int64_t last, int64_t first_sample, int64_t samples) {
    __syncthreads();
    for (int64_t feature = first + threadIdx.y; feature < last; feature += blockDim.y) {
      const int64_t sample = first_sample + threadIdx.x * kCount;
      features[feature - first][threadIdx.x] = load<kCount>(input + feature * samples, sample, samples);
    }
    __syncthreads();
  }
};

__device__ inline int64_t first_line_of_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y) * kLines;
}

// Where the survivors of a line in a panel begin and end; nowhere for a line beyond the last.
template <typename Index>
__device__ inline void find_survivors(const SparseLines<Index>& matrix, int64_t panel, int64_t line, int32_t* begin,
                                      int32_t* end) {
  const bool exists = line < matrix.lines;
  const int32_t* start =
      matrix.starts + panel * (matrix.lines + 1) + (exists ? matrix.places[panel * matrix.lines + line] : 0);
  *begin = exists ? start[0] : 0;
  *end = exists ? start[1] : 0;
}

// How many of the next kWarp survivors of a line stand before feature `last`. The warp finds them together, so that the
// loop over them knows its end and need not wait for one index before it reads the next.
template <typename Index>
__device__ int survivors_before(const Index* indices, int32_t next, int32_t end, int64_t last) {
  const int64_t own = int64_t{next} + threadIdx.x;  // looks ahead, which may be beyond 2**31
  return __popc(__ballot_sync(kAllLanes, own < end && indices[own] < last));
}

template <typename Element, typename Index>
__global__ void __launch_bounds__(kWarp* kMostWarps)
    product(SparseLines<Index> matrix, const Element* values, const Element* bias, const Element* input,
            Element* output, int64_t samples) {
  constexpr int kCount = kProductSamples;
  using InputTile = Tile<Element, kCount>;
  __shared__ InputTile tile;
  const int64_t first_line = first_line_of_warp();
  for (int64_t first_sample = blockIdx.y * InputTile::kSamples; first_sample < samples;
       first_sample += gridDim.y * InputTile::kSamples) {
    Element sums[kLines][kCount] = {};
    for (int64_t panel = 0; panel < matrix.panels; ++panel) {
      int32_t next[kLines], end[kLines];
#pragma unroll
      for (int l = 0; l < kLines; ++l) find_survivors(matrix, panel, first_line + l, &next[l], &end[l]);
      const int64_t panel_end = smaller((panel + 1) * matrix.panel_width, matrix.features);
      for (int64_t first = panel * matrix.panel_width; first < panel_end; first += InputTile::kFeatures) {
        const int64_t last = smaller(first + InputTile::kFeatures, panel_end);
        tile.fill(input, first, last, first_sample, samples);
#pragma unroll
        for (int l = 0; l < kLines; ++l) {
          // Added up on its own, so that rounding errors grow less with the length of the line.
          Element of_tile[kCount] = {};
          int count;
          do {
            count = survivors_before(matrix.indices, next[l], end[l], last);
            for (int32_t survivor = next[l]; survivor < next[l] + count; ++survivor) {
              const auto feature = tile.features[matrix.indices[survivor] - first][threadIdx.x];
              for (int i = 0; i < kCount; ++i) of_tile[i] += values[survivor] * feature.at[i];
            }
            next[l] += count;
          } while (count == kWarp);
          for (int i = 0; i < kCount; ++i) sums[l][i] += of_tile[i];
        }
      }
    }
#pragma unroll
    for (int l = 0; l < kLines; ++l) {
      const int64_t line = first_line + l;
      if (line >= matrix.lines) break;
      const Element added = bias == nullptr ? Element{0} : bias[line];
      for (int i = 0; i < kCount; ++i) {
        const int64_t sample = first_sample + threadIdx.x * kCount + i;
        if (sample < samples) output[line * samples + sample] = sums[l][i] + added;
      }
    }
  }
}

// The first of the survivors from `begin` to `end` at `feature` or behind.
template <typename Index>
__device__ int32_t first_from(const Index* indices, int32_t begin, int32_t end, int64_t feature) {
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (indices[middle] < feature) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

template <typename InputTile, typename Index>
__host__ __device__ inline int64_t tiles_per_panel(const SparseLines<Index>& matrix) {
  return (matrix.panel_width + InputTile::kFeatures - 1) / InputTile::kFeatures;
}

template <typename Element, typename Index>
__global__ void __launch_bounds__(kWarp* kMostWarps)
    sampled(SparseLines<Index> matrix, const Element* grad_output, const Element* input, Element* grad_values,
            int64_t samples) {
  constexpr int kCount = kSampledSamples;
  using InputTile = Tile<Element, kCount>;
  __shared__ InputTile tile;
  const int64_t first_line = first_line_of_warp();
  const int64_t per_panel = tiles_per_panel<InputTile>(matrix);
  for (int64_t place = blockIdx.y; place < matrix.panels * per_panel; place += gridDim.y) {
    const int64_t panel = place / per_panel;
    const int64_t first = panel * matrix.panel_width + place % per_panel * InputTile::kFeatures;
    const int64_t panel_end = smaller((panel + 1) * matrix.panel_width, matrix.features);
    if (first >= panel_end) continue;  // the last panel may be narrower
    const int64_t last = smaller(first + InputTile::kFeatures, panel_end);
    int32_t begin[kLines], end[kLines];
#pragma unroll
    for (int l = 0; l < kLines; ++l) {
      int32_t end_in_panel;
      find_survivors(matrix, panel, first_line + l, &begin[l], &end_in_panel);
      begin[l] = first_from(matrix.indices, begin[l], end_in_panel, first);
      end[l] = first_from(matrix.indices, begin[l], end_in_panel, last);
    }
    int64_t first_sample = 0;
    do {  // once without any samples, too: the gradient is zero then
      tile.fill(input, first, last, first_sample, samples);
#pragma unroll
      for (int l = 0; l < kLines; ++l) {
        if (begin[l] == end[l]) continue;
        const auto gradient =
            load<kCount>(grad_output + (first_line + l) * samples, first_sample + threadIdx.x * kCount, samples);
        for (int32_t survivor = begin[l]; survivor < end[l]; ++survivor) {
          const auto feature = tile.features[matrix.indices[survivor] - first][threadIdx.x];
          Element sum = 0;
          for (int i = 0; i < kCount; ++i) sum += gradient.at[i] * feature.at[i];
          for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) {
            sum += __shfl_down_sync(kAllLanes, sum, distance);
          }
          if (threadIdx.x == 0) grad_values[survivor] = first_sample == 0 ? sum : grad_values[survivor] + sum;
        }
      }
      first_sample += InputTile::kSamples;
    } while (first_sample < samples);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of (lanes, warps): many warps share a tile, unless the device would then have too few blocks.
struct Shape {
  dim3 blocks, threads;

  Shape(int64_t lines, int64_t rows_of_blocks) : threads(kWarp, kMostWarps) {
    while (threads.y > kFewestWarps && ceil_div(lines, kLines * threads.y) * rows_of_blocks < kEnoughBlocks) {
      threads.y /= 2;
    }
    blocks = dim3(static_cast<unsigned>(ceil_div(lines, kLines * threads.y)),
                  static_cast<unsigned>(rows_of_blocks < kLargestGridY ? rows_of_blocks : kLargestGridY));
  }
};

}  // namespace

template <typename Element, typename Index>
void sparse_product(const SparseLines<Index>& matrix, const Element* values, const Element* bias, const Element* input,
                    Element* output, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0 || samples == 0) return;
  const Shape shape(matrix.lines, ceil_div(samples, Tile<Element, kProductSamples>::kSamples));
  launch(product<Element, Index>, shape.blocks, shape.threads, stream, matrix, values, bias, input, output, samples);
}

template <typename Element, typename Index>
void sampled_product(const SparseLines<Index>& matrix, const Element* grad_output, const Element* input,
                     Element* grad_values, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0 || matrix.features == 0) return;
  const Shape shape(matrix.lines, matrix.panels * tiles_per_panel<Tile<Element, kSampledSamples>>(matrix));
  launch(sampled<Element, Index>, shape.blocks, shape.threads, stream, matrix, grad_output, input, grad_values,
         samples);
}

#define LTH_FAST_INSTANTIATE(Element, Index)                                                                         \
  template void sparse_product<Element, Index>(const SparseLines<Index>&, const Element*, const Element*,            \
                                               const Element*, Element*, int64_t, cudaStream_t);                     \
  template void sampled_product<Element, Index>(const SparseLines<Index>&, const Element*, const Element*, Element*, \
                                                int64_t, cudaStream_t);
LTH_FAST_INSTANTIATE(float, int16_t)
LTH_FAST_INSTANTIATE(float, int32_t)
LTH_FAST_INSTANTIATE(double, int16_t)
LTH_FAST_INSTANTIATE(double, int32_t)
#undef LTH_FAST_INSTANTIATE

}  // namespace lth_fast::cuda
