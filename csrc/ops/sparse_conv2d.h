#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// What nn.Conv2d calls so; each pair is (vertical, horizontal).
struct Convolution {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  int64_t groups;
};

// Height (axis 0) or width (axis 1) of the output for that of the input.
template <typename Size>
Size convolved_size(const Convolution& convolution, size_t axis, const Size& input) {
  const int64_t reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) + 1;
  return (input + 2 * convolution.padding[axis] - reach) / convolution.stride[axis] + 1;
}

// The tensors of sparse_conv2d_pattern.
struct ConvolutionPattern {
  const at::Tensor &output_starts, &input_taps, &input_starts, &output_taps, &permutation;
};

// Shapes and types. That the numbers inside are those of one mask is sparse_conv2d_pattern's part.
void check_sparse_conv2d(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const ConvolutionPattern& pattern, const Convolution& convolution);

}  // namespace lth_fast
