// A warp per line of the matrix. Every output has one owner that adds in a fixed order: the same bits in every run.
#include "cuda/kernels/sparse_linear.h"

#include "cuda/kernels/launch.h"

namespace lth_fast::cuda {
namespace {

constexpr unsigned kWarps = 8;
constexpr int kSamplesPerLane = 4;
constexpr int64_t kSamplesPerWarp = kWarp * kSamplesPerLane;
constexpr int64_t kLargestGridY = 65535;

template <typename Element, typename Index>
__global__ void product(SparseLines<Index> matrix, const Element* values, const Element* bias, const Element* input,
                        Element* output, int64_t samples) {
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (line >= matrix.lines) return;
  for (int64_t tile = blockIdx.y * kSamplesPerWarp; tile < samples; tile += gridDim.y * kSamplesPerWarp) {
    const int64_t first = tile + threadIdx.x;
    Element sums[kSamplesPerLane] = {};
    for (int64_t panel = 0; panel < matrix.panels; ++panel) {
      const int32_t* start = matrix.starts + panel * matrix.stride + line;
      const int32_t end = start[matrix.to_end];
      for (int32_t survivor = *start; survivor < end; ++survivor) {
        const Element value = values[matrix.permutation == nullptr ? survivor : matrix.permutation[survivor]];
        const Element* feature = input + static_cast<int64_t>(matrix.indices[survivor]) * samples;
        for (int i = 0; i < kSamplesPerLane; ++i) {
          const int64_t sample = first + i * static_cast<int64_t>(kWarp);
          if (sample < samples) sums[i] += value * feature[sample];
        }
      }
    }
    const Element added = bias == nullptr ? Element{0} : bias[line];
    for (int i = 0; i < kSamplesPerLane; ++i) {
      const int64_t sample = first + i * static_cast<int64_t>(kWarp);
      if (sample < samples) output[line * samples + sample] = sums[i] + added;
    }
  }
}

template <typename Element, typename Index>
__global__ void sampled(SparseLines<Index> matrix, const Element* grad_output, const Element* input,
                        Element* grad_values, int64_t samples) {
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (line >= matrix.lines) return;
  const Element* gradient = grad_output + line * samples;
  const int32_t end = matrix.starts[line + matrix.to_end];
  for (int32_t survivor = matrix.starts[line]; survivor < end; ++survivor) {
    const Element* feature = input + static_cast<int64_t>(matrix.indices[survivor]) * samples;
    Element sum = 0;
    for (int64_t sample = threadIdx.x; sample < samples; sample += kWarp) sum += gradient[sample] * feature[sample];
    for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(kAllLanes, sum, distance);
    if (threadIdx.x == 0) grad_values[survivor] = sum;
  }
}

unsigned blocks_for(int64_t lines) { return static_cast<unsigned>((lines + kWarps - 1) / kWarps); }

}  // namespace

template <typename Element, typename Index>
void sparse_product(const SparseLines<Index>& matrix, const Element* values, const Element* bias, const Element* input,
                    Element* output, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0 || samples == 0) return;
  const int64_t tiles = (samples + kSamplesPerWarp - 1) / kSamplesPerWarp;
  const dim3 blocks(blocks_for(matrix.lines), static_cast<unsigned>(tiles < kLargestGridY ? tiles : kLargestGridY));
  launch(product<Element, Index>, blocks, dim3(kWarp, kWarps), stream, matrix, values, bias, input, output, samples);
}

template <typename Element, typename Index>
void sampled_product(const SparseLines<Index>& matrix, const Element* grad_output, const Element* input,
                     Element* grad_values, int64_t samples, cudaStream_t stream) {
  if (matrix.lines == 0) return;
  launch(sampled<Element, Index>, dim3(blocks_for(matrix.lines)), dim3(kWarp, kWarps), stream, matrix, grad_output,
         input, grad_values, samples);
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
