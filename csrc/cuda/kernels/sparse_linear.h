#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lth_fast::cuda {

// The survivors of a matrix, line by line: those of line l are start to start[to_end] in panel p, where
// start = starts + p * stride + l. A line is a row of the weight in row order, a column of it in column order.
template <typename Index>
struct SparseLines {
  const int32_t* starts;
  int64_t panels;
  int64_t lines;
  int64_t stride;
  int64_t to_end;
  const Index* indices;        // where in its line each survivor stands
  const int32_t* permutation;  // where its value stands; null: where it stands itself
};

// output[line][sample] = sum over the line's survivors of value * input[index][sample], + bias[line] unless null.
// input is [features][samples], output [lines][samples]: neighbouring threads take neighbouring samples.
template <typename Element, typename Index>
void sparse_product(const SparseLines<Index>& matrix, const Element* values, const Element* bias, const Element* input,
                    Element* output, int64_t samples, cudaStream_t stream);

// grad_values[survivor] = sum over samples of grad_output[line][sample] * input[index][sample]; for row order, where
// the survivors of a line lie side by side and no permutation is needed.
template <typename Element, typename Index>
void sampled_product(const SparseLines<Index>& matrix, const Element* grad_output, const Element* input,
                     Element* grad_values, int64_t samples, cudaStream_t stream);

}  // namespace lth_fast::cuda
