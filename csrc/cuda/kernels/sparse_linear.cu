// A block holds a tile of the input in shared memory, some features by some samples, which the survivors of all its
// lines read. A warp has a few lines of the matrix, a lane of it the same few samples of every feature. Every output
// has one owner that adds in a fixed order: the same bits in every run.
//
// What a tile costs a warp per line, whatever the density, is to find where the line's survivors end and to wait for
// their indices. So tiles are as large as two blocks of a multiprocessor can have them, and a warp reads 32 survivors
// at a time, those of its next line before it works on this one.
#include "cuda/kernels/sparse_linear.h"

#include <cuda_pipeline.h>

#include "cuda/kernels/launch.h"

namespace lth_fast::cuda {
namespace {

constexpr int kLines = 8;  // of a warp
constexpr unsigned kMostWarps = 16, kFewestWarps = 4;
constexpr int64_t kEnoughBlocks = 256;
constexpr int64_t kLargestGridY = 65535;
// The cut of the sums, and with it their bits, is the same on every device: the smallest ones have 99 KiB for a block.
constexpr int64_t kTileBytes = 96 << 10;
// Of a lane. The sampled product sums over a warp once for all of them: the more, the cheaper.
constexpr int kProductSamples = 2, kSampledSamples = 4;

__host__ __device__ constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Of one feature, neighbouring ones: what a lane reads at a time.
template <typename Element, int kCount>
struct alignas(kCount * sizeof(Element)) Samples {
  Element at[kCount];
};

// Zeros beyond the last sample. `aligned`: a feature's samples begin at multiples of kCount in memory.
template <int kCount, typename Element>
__device__ Samples<Element, kCount> load(const Element* feature, int64_t first, int64_t samples, bool aligned) {
  using Loaded = Samples<Element, kCount>;
  if (aligned && first + kCount <= samples) return *reinterpret_cast<const Loaded*>(feature + first);
  Loaded loaded;
  for (int i = 0; i < kCount; ++i) loaded.at[i] = first + i < samples ? feature[first + i] : Element{0};
  return loaded;
}

// Requests the same for shared memory, in pieces of kPiece samples, as far as they are aligned.
template <int kPiece, typename Element, int kCount>
__device__ void request(Samples<Element, kCount>* to, const Element* feature, int64_t first, int64_t samples) {
  for (int i = 0; i < kCount; i += kPiece) {
    const bool exists = first + i < samples;
    constexpr size_t kBytes = kPiece * sizeof(Element);
    __pipeline_memcpy_async(&to->at[i], feature + (exists ? first + i : 0), kBytes, exists ? 0 : kBytes);
  }
}

// What a warp hands to all of its lanes: its survivors' values, and where in the tile their features begin.
template <typename Element>
struct alignas(16) Handed {
  Element values[kWarp];
  int32_t places[kWarp];
};

// Four neighbours, read at once.
template <typename Number>
struct alignas(16) Four {
  Number at[4];
};

template <typename Number>
__device__ Four<Number> four(const Number* numbers) {
  return *reinterpret_cast<const Four<Number>*>(numbers);
}

// Shared memory of a block: features of the input, one of zeros behind them, and what each warp hands to its lanes.
template <typename Element, int kCount>
class Tile {
 public:
  static constexpr int64_t kSamples = kWarp * kCount;
  static constexpr int64_t kFeatures = kTileBytes / (kSamples * static_cast<int64_t>(sizeof(Element)));

  static __host__ __device__ size_t bytes(int64_t features, unsigned warps) {
    return static_cast<size_t>(features + 1) * kWarp * sizeof(Samples<Element, kCount>) +
           warps * sizeof(Handed<Element>);
  }

  // By all threads of the block. The next fill waits for all of them.
  __device__ explicit Tile(int64_t features)
      : lanes_(reinterpret_cast<Samples<Element, kCount>*>(dynamic_memory()) + threadIdx.x),
        zeros_(static_cast<int32_t>(features) * kWarp),
        handed_(reinterpret_cast<Handed<Element>*>(lanes_ - threadIdx.x + zeros_ + kWarp) + threadIdx.y) {
    if (threadIdx.y == 0) lanes_[zeros_] = {};
  }

  // All threads of the block together, once all of them have read what is there; waits until it is filled.
  __device__ void fill(const Element* input, int64_t first, int64_t last, int64_t first_sample, int64_t samples,
                       bool aligned) {
    constexpr int kLargestPiece = static_cast<int>(smaller(kCount, 16 / sizeof(Element)));
    __syncthreads();
    const int64_t sample = first_sample + threadIdx.x * kCount;
    for (int64_t feature = first + threadIdx.y; feature < last; feature += blockDim.y) {
      auto* const to = lanes_ + (feature - first) * kWarp;
      if (aligned) {
        request<kLargestPiece>(to, input + feature * samples, sample, samples);
      } else {
        request<1>(to, input + feature * samples, sample, samples);
      }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  __device__ Samples<Element, kCount> at(int32_t place) const { return lanes_[place]; }
  static __device__ int32_t place_of(int64_t feature_in_tile) { return static_cast<int32_t>(feature_in_tile) * kWarp; }
  __device__ int32_t zeros() const { return zeros_; }
  __device__ Handed<Element>& handed() const { return *handed_; }

 private:
  Samples<Element, kCount>* lanes_;  // this lane's of the first feature; places count from here
  int32_t zeros_;
  Handed<Element>* handed_;
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

template <typename Element>
struct Survivor {
  int feature;
  Element value;
};

constexpr int kNoFeature = INT32_MAX;

// That of this lane, of a line's next ones.
template <typename Element, typename Index>
__device__ Survivor<Element> read_survivor(const Index* indices, const Element* values, int32_t next, int32_t end) {
  if (static_cast<int>(threadIdx.x) >= end - next) return {kNoFeature, Element{0}};
  return {indices[next + threadIdx.x], values[next + threadIdx.x]};
}

template <typename Element, typename Index>
__global__ void __launch_bounds__(kWarp* kMostWarps, 2)
    product(SparseLines<Index> matrix, const Element* values, const Element* bias, const Element* input,
            Element* output, int64_t samples, int64_t tile_features, bool aligned) {
  constexpr int kCount = kProductSamples;
  using InputTile = Tile<Element, kCount>;
  InputTile tile(tile_features);
  Handed<Element>& handed = tile.handed();
  const int64_t first_line = first_line_of_warp();
  for (int64_t first_sample = blockIdx.y * InputTile::kSamples; first_sample < samples;
       first_sample += gridDim.y * InputTile::kSamples) {
    Element sums[kLines][kCount] = {};
    for (int64_t panel = 0; panel < matrix.panels; ++panel) {
      // Lane l knows where line l stands.
      int32_t next_of_lane, end_of_lane;
      find_survivors(matrix, panel, first_line + threadIdx.x % kLines, &next_of_lane, &end_of_lane);
      const int64_t panel_end = smaller((panel + 1) * matrix.panel_width, matrix.features);
      for (int64_t first = panel * matrix.panel_width; first < panel_end; first += tile_features) {
        const int64_t last = smaller(first + tile_features, panel_end);
        tile.fill(input, first, last, first_sample, samples, aligned);
        const auto read = [&](int32_t next, int l) {
          return read_survivor(matrix.indices, values, next, __shfl_sync(kAllLanes, end_of_lane, l));
        };
        Survivor<Element> ahead = read(__shfl_sync(kAllLanes, next_of_lane, 0), 0);
#pragma unroll
        for (int l = 0; l < kLines; ++l) {
          Survivor<Element> own = ahead;
          if (l + 1 < kLines) ahead = read(__shfl_sync(kAllLanes, next_of_lane, l + 1), l + 1);
          int32_t next = __shfl_sync(kAllLanes, next_of_lane, l);
          // Added up on its own, so that rounding errors grow less with the length of the line.
          Element of_tile[kCount] = {};
          while (true) {
            const bool in_tile = own.feature < last;
            const int count = __popc(__ballot_sync(kAllLanes, in_tile));
            if (count == 0) break;
            handed.values[threadIdx.x] = in_tile ? own.value : Element{0};
            handed.places[threadIdx.x] = in_tile ? InputTile::place_of(own.feature - first) : tile.zeros();
            __syncwarp();
            for (int survivor = 0; survivor < count; survivor += 4) {  // behind the last: zero times zero
              const Four<Element> kept = four(handed.values + survivor);
              const Four<int32_t> places = four(handed.places + survivor);
#pragma unroll
              for (int s = 0; s < 4; ++s) {
                const auto feature = tile.at(places.at[s]);
                for (int i = 0; i < kCount; ++i) of_tile[i] += kept.at[s] * feature.at[i];
              }
            }
            __syncwarp();  // before the next ones take their place
            next += count;
            if (count < static_cast<int>(kWarp)) break;
            own = read(next, l);
          }
          if (static_cast<int>(threadIdx.x) % kLines == l) next_of_lane = next;
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

// How many sums over the lanes a warp makes at once, and which of them this lane ends up with, as do the three beside
// it.
constexpr int kSums = 8;
__device__ inline unsigned own_sum() { return threadIdx.x / 4; }

// Every exchange halves the sums that a lane still works on: nine of them for eight sums, where one by one takes forty.
template <typename Element>
__device__ Element sum_over_warp(Element (&sums)[kSums]) {
  int kept = kSums;
#pragma unroll
  for (int distance = kWarp / 2; distance >= 4; distance /= 2) {
    kept /= 2;
    const bool upper = (threadIdx.x & distance) != 0;
    for (int i = 0; i < kept; ++i) {
      const Element own = upper ? sums[kept + i] : sums[i], other = upper ? sums[i] : sums[kept + i];
      sums[i] = own + __shfl_xor_sync(kAllLanes, other, distance);
    }
  }
  for (int distance = 2; distance >= 1; distance /= 2) sums[0] += __shfl_xor_sync(kAllLanes, sums[0], distance);
  return sums[0];
}

template <typename Element, typename Index>
__global__ void __launch_bounds__(kWarp* kMostWarps, 2)
    sampled(SparseLines<Index> matrix, const Element* grad_output, const Element* input, Element* grad_values,
            int64_t samples, int64_t tile_features, bool aligned) {
  constexpr int kCount = kSampledSamples;
  using InputTile = Tile<Element, kCount>;
  InputTile tile(tile_features);
  Handed<Element>& handed = tile.handed();
  const int64_t first_line = first_line_of_warp();
  const int64_t per_panel = (matrix.panel_width + tile_features - 1) / tile_features;
  for (int64_t place = blockIdx.y; place < matrix.panels * per_panel; place += gridDim.y) {
    const int64_t panel = place / per_panel;
    const int64_t first = panel * matrix.panel_width + place % per_panel * tile_features;
    const int64_t panel_end = smaller((panel + 1) * matrix.panel_width, matrix.features);
    if (first >= panel_end) continue;  // the last panel may be narrower
    const int64_t last = smaller(first + tile_features, panel_end);
    // Two lanes for each line look for its first survivor of the tile and its first behind, all at the same time.
    static_assert(2 * kLines <= kWarp);
    int32_t bound = 0;
    if (threadIdx.x < 2 * kLines) {
      int32_t begin, end;
      find_survivors(matrix, panel, first_line + threadIdx.x / 2, &begin, &end);
      bound = first_from(matrix.indices, begin, end, threadIdx.x % 2 == 0 ? first : last);
    }
    int64_t first_sample = 0;
    do {  // once without any samples, too: the gradient is zero then
      tile.fill(input, first, last, first_sample, samples, aligned);
      for (int l = 0; l < kLines; ++l) {
        const int32_t begin = __shfl_sync(kAllLanes, bound, 2 * l), end = __shfl_sync(kAllLanes, bound, 2 * l + 1);
        if (begin == end) continue;
        const auto gradient = load<kCount>(grad_output + (first_line + l) * samples,
                                           first_sample + threadIdx.x * kCount, samples, aligned);
        for (unsigned next = 0, count = end - begin; next < count; next += kWarp) {
          const unsigned own = next + threadIdx.x;
          handed.places[threadIdx.x] =
              own < count ? InputTile::place_of(matrix.indices[begin + own] - first) : tile.zeros();
          __syncwarp();
          for (unsigned offset = 0; offset < kWarp && next + offset < count; offset += kSums) {
            Element sums[kSums] = {};
#pragma unroll
            for (int s = 0; s < kSums; ++s) {
              const auto feature = tile.at(four(handed.places + offset + s / 4 * 4).at[s % 4]);
              for (int i = 0; i < kCount; ++i) sums[s] += gradient.at[i] * feature.at[i];
            }
            const Element sum = sum_over_warp(sums);
            const unsigned survivor = next + offset + own_sum();
            if (threadIdx.x % 4 == 0 && survivor < count) {
              Element& total = grad_values[begin + survivor];
              total = first_sample == 0 ? sum : total + sum;
            }
          }
          __syncwarp();  // before the next ones take their place
        }
      }
      first_sample += InputTile::kSamples;
    } while (first_sample < samples);
  }
}

__global__ void invert(const int32_t* order, int32_t* places, int64_t lines, int64_t count) {
  const int64_t i = item();
  if (i < count) places[i / lines * lines + order[i]] = static_cast<int32_t>(i % lines);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t most_bytes_of_a_block() {
  int device = 0, bytes = 0;
  (void)cudaGetDevice(&device);
  (void)cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
}

// Blocks of (lanes, warps): many warps share a tile, unless the device would then have too few blocks, or the block too
// little memory.
template <typename InputTile>
struct Shape {
  dim3 blocks, threads;
  int64_t features;  // of a tile
  size_t bytes;

  template <typename Index>
  explicit Shape(const SparseLines<Index>& matrix)
      : threads(kWarp, kMostWarps), features(smaller(InputTile::kFeatures, matrix.panel_width)) {}

  void cut(int64_t lines, int64_t rows_of_blocks) {
    const size_t most_bytes = most_bytes_of_a_block();
    while (threads.y > kFewestWarps && (ceil_div(lines, kLines * threads.y) * rows_of_blocks < kEnoughBlocks ||
                                        InputTile::bytes(features, threads.y) > most_bytes)) {
      threads.y /= 2;
    }
    blocks = dim3(static_cast<unsigned>(ceil_div(lines, kLines * threads.y)),
                  static_cast<unsigned>(smaller(rows_of_blocks, kLargestGridY)));
    bytes = InputTile::bytes(features, threads.y);
  }
};

// Whether lanes can read all of their samples of a feature at once.
template <int kCount, typename Element>
bool aligned(const Element* tensor, int64_t samples) {
  return samples % kCount == 0 && reinterpret_cast<uintptr_t>(tensor) % sizeof(Samples<Element, kCount>) == 0;
}

}  // namespace

template <typename Element, typename Index>
void sparse_product(const SparseLines<Index>& matrix, const Element* values, const Element* bias, const Element* input,
                    Element* output, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0 || samples == 0) return;
  using InputTile = Tile<Element, kProductSamples>;
  Shape<InputTile> shape(matrix);
  shape.cut(matrix.lines, ceil_div(samples, InputTile::kSamples));
  launch_with_memory(shape.bytes, product<Element, Index>, shape.blocks, shape.threads, stream, matrix, values, bias,
                     input, output, samples, shape.features, aligned<kProductSamples>(input, samples));
}

template <typename Element, typename Index>
void sampled_product(const SparseLines<Index>& matrix, const Element* grad_output, const Element* input,
                     Element* grad_values, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0 || matrix.features == 0) return;
  Shape<Tile<Element, kSampledSamples>> shape(matrix);
  shape.cut(matrix.lines, matrix.panels * ceil_div(matrix.panel_width, shape.features));
  launch_with_memory(shape.bytes, sampled<Element, Index>, shape.blocks, shape.threads, stream, matrix, grad_output,
                     input, grad_values, samples, shape.features,
                     aligned<kSampledSamples>(input, samples) && aligned<kSampledSamples>(grad_output, samples));
}

void invert_order(const int32_t* order, int32_t* places, int64_t panels, int64_t lines, cudaStream_t stream) {
  launch_for_each(invert, panels * lines, stream, order, places, lines, panels * lines);
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
