#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lth_fast::cuda {

// The survivors of a matrix, line by line: those of line l in panel p are *start to start[1], where
// start = starts + p * (lines + 1) + places[p * lines + l]. A line is a row of the weight in row order, a column of it
// in column order. Within a line the indices ascend, and panel p has those from p * panel_width on.
template <typename Index>
struct SparseLines {
  const int32_t *starts, *places;
  int64_t panels;
  int64_t lines;
  int64_t features;  // that a line may have survivors at
  int64_t panel_width;
  const Index* indices;  // where in its line each survivor stands
};

// output[line][sample] = sum over the line's survivors of value * input[index][sample], + bias[line] unless null. The
// values stand in the order of the indices. input is [features][samples], output [lines][samples]: neighbouring threads
// take neighbouring samples.
template <typename Element, typename Index>
void sparse_product(const SparseLines<Index>& matrix, const Element* values, const Element* bias, const Element* input,
                    Element* output, int64_t samples, cudaStream_t stream);

// grad_values[survivor] = sum over samples of grad_output[line][sample] * input[index][sample].
template <typename Element, typename Index>
void sampled_product(const SparseLines<Index>& matrix, const Element* grad_output, const Element* input,
                     Element* grad_values, int64_t samples, cudaStream_t stream);

// places[panel][line] = the place of the line in order[panel], which has every line once.
void invert_order(const int32_t* order, int32_t* places, int64_t panels, int64_t lines, cudaStream_t stream);

}  // namespace lth_fast::cuda
